"""Rows whose values are compared: a prompt in one pass, token by token, and a tree of drafts after
it, as an engine runs them.

In: an engine and a `Sample`. Out: its `StageRows`: hidden states at the prediction layer and logits
of each stage.
"""

from typing import NamedTuple

import numpy as np

from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.trees.tree import DraftTree, chain

TREE_ROWS = 12


class Rows(NamedTuple):
    """Hidden states and logits of T rows."""

    hidden_states: np.ndarray  # [T, D] at the prediction layer
    logits: np.ndarray  # [T, V]


class Sample(NamedTuple):
    """A prompt, and a tree of draft tokens that follows it."""

    prompt: list[int]
    tree: DraftTree


class StageRows(NamedTuple):
    """Rows of one sample in each stage; T is the prompt's length, and in `tree` the tree's."""

    prefill: Rows  # the prompt in one pass
    decode: Rows  # half the prompt in one pass, then a token a pass, each on the cache of those before
    tree: Rows  # the tree in one pass, on the cached prompt


def random_sample(prompt: list[int], vocab_size: int, context: int, rows: int = TREE_ROWS) -> Sample:
    """The prompt and a random tree of so many rows that ends within the context."""
    rng = np.random.default_rng(len(prompt))
    parents = [-1]
    depths = [0]
    deepest = context - len(prompt) - 1
    for _ in range(1, rows):
        parents.append(int(rng.choice([node for node, depth in enumerate(depths) if depth < deepest])))
        depths.append(depths[parents[-1]] + 1)
    tokens = rng.integers(0, vocab_size, rows).tolist()
    return Sample(prompt, DraftTree(tokens, parents, depths, [1.0] * rows, [""] * rows))


class SessionRows:
    """An engine, run over samples in one session."""

    def __init__(self, engine: Engine, rows: int, past: np.ndarray | None = None):
        """rows: the most of one pass. past: keys and values [2 L, Hkv, P, Dh] that the layers have cached
        of the tokens before each sample, of an engine whose cache lies in host memory.
        """
        self._cached = 0 if past is None else past.shape[2]
        self.session = engine.session(min(self._cached + 128, engine.model.max_position_embeddings), rows)
        if past is not None:
            self.session.take_over([0] * self._cached, [past])

    def run(self, sample: Sample) -> StageRows:
        """Run one sample in every stage."""
        self.session.rewind(self._cached)
        prefill = self._pass(chain(sample.prompt), keep=True)
        tree = self._pass(sample.tree, keep=False)
        self.session.rewind(self._cached)
        half = max(1, len(sample.prompt) // 2)
        pieces = [sample.prompt[:half], *([token] for token in sample.prompt[half:])]
        decode = [self._pass(chain(piece), keep=True) for piece in pieces]
        return StageRows(prefill, Rows(*map(np.concatenate, zip(*decode, strict=True))), tree)

    def _pass(self, tree: DraftTree, keep: bool) -> Rows:
        """keep: go on after these rows; the others are the last of their sequence."""
        logits = self.session.forward(PassPlan(tree)).logits.copy()
        rows = Rows(self.session.hidden_states(len(tree.tokens)).copy(), logits)
        if keep:
            self.session.commit(range(len(tree.tokens)))
        return rows
