"""Passes over chains and trees, by the runtime and by Hugging Face, for their values to be
compared.

In: a tree of token ids, after what was kept before. Out: `Rows`, hidden states at the prediction
layer and logits, in float32.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.trees.tree import DraftTree, chain


class Rows(NamedTuple):
    hidden_states: np.ndarray  # [T, D] at the prediction layer
    logits: np.ndarray  # [T, V]


class HuggingFaceRows:
    """The Hugging Face model, run over chains and trees with a cache of its own."""

    def __init__(self, model: Any, prediction_layer: int, window: int | None):
        from transformers import DynamicCache

        self.model, self.layer, self.window, self._new_cache = model, prediction_layer, window, DynamicCache

    def reset(self) -> None:
        self.cache = self._new_cache()

    def run(self, tree: DraftTree, keep: bool) -> Rows:
        """keep: go on after these rows; the others are the last of their sequence."""
        import torch

        options = {}
        if not keep:
            bias, positions = _tree_mask(tree, self.cache.get_seq_length(), self.window)
            options = {
                "attention_mask": torch.from_numpy(bias)[None, None],
                "position_ids": torch.from_numpy(positions)[None],
            }
        with torch.no_grad():
            out = self.model(
                input_ids=torch.tensor([tree.tokens]),
                past_key_values=self.cache,
                use_cache=True,
                output_hidden_states=True,
                **options,
            )
        return Rows(out.hidden_states[self.layer][0].numpy(), out.logits[0].numpy())


def _tree_mask(tree: DraftTree, cached: int, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """An additive mask [T, P+T] and positions [T], written anew, not with the runtime's own
    function.
    """
    rows = len(tree.tokens)
    positions = np.array(tree.depths) + cached
    visible = np.zeros((rows, cached + rows), bool)
    visible[:, :cached] = True
    for node in range(rows):
        ancestor = node
        while ancestor >= 0:
            visible[node, cached + ancestor] = True
            ancestor = tree.parents[ancestor]
    if window:
        visible &= positions[:, None] - np.concatenate([np.arange(cached), positions]) < window
    return np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32), positions


class SessionRows:
    """An engine, run over chains and trees in one session."""

    def __init__(self, engine: Engine, rows: int):
        self.session = engine.session(min(128, engine.model.max_position_embeddings), rows)

    def reset(self) -> None:
        self.session.kv.length = 0

    def run(self, tree: DraftTree, keep: bool) -> Rows:
        logits = self.session.forward(PassPlan(tree)).logits.copy()
        rows = Rows(self.session.hidden_states(len(tree.tokens)).copy(), logits)
        if keep:
            self.session.commit(range(len(tree.tokens)))
        return rows


Passes = Iterator[tuple[DraftTree, bool]]  # a tree, and whether its rows are kept for the passes after it


def _prefill(prompt: list[int], vocab_size: int, context: int) -> Passes:
    yield chain(prompt), True


def _decode(prompt: list[int], vocab_size: int, context: int) -> Passes:
    """A prefill of the first half, then the rest one token a pass, each on the cache that the last
    one left.
    """
    half = max(1, len(prompt) // 2)
    yield chain(prompt[:half]), True
    for token in prompt[half:]:
        yield chain([token]), True


def _tree(prompt: list[int], vocab_size: int, context: int) -> Passes:
    """A random tree of 12 rows on a cached prompt."""
    yield chain(prompt), True
    rng = np.random.default_rng(len(prompt))
    parents, depths, deepest = [-1], [0], context - len(prompt) - 1
    for _ in range(1, 12):
        parents.append(int(rng.choice([node for node, depth in enumerate(depths) if depth < deepest])))
        depths.append(depths[parents[-1]] + 1)
    yield DraftTree(rng.integers(0, vocab_size, 12).tolist(), parents, depths, [1.0] * 12), False


STAGES: dict[str, Callable[[list[int], int, int], Passes]] = {
    "prefill": _prefill,
    "decode": _decode,
    "tree": _tree,
}
