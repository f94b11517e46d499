"""How many tokens a step gives, without decoding: drafts are replayed on a text that the model has
already decoded.

In: a frozen model, draft heads, sequences. Out: `Recorded` guesses at every position, and what any
tree makes of them. Exact, because acceptance depends on the picked tokens alone, and a source's
guesses on the tokens before it alone: the replay walks the runtime's own trees. In float32 it
differs from decoding by rounding only.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from firp.calib.text.sequence import TokenSequence
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import Heads
from firp.runtime.bundle.graph_spec import TOP_K
from firp.runtime.trees.guesses import Guesses, Ranking, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import DraftTree, build_tree, likely_ends, root_only
from firp.runtime.trees.tree_config import DYNAMIC, TreeConfig


class Recorded(NamedTuple):
    """A sequence, and the guesses of each of its rows from the last prompt token on; those before
    are padding.
    """

    sequence: TokenSequence
    top_ids: np.ndarray  # [S, K, k] i64
    top_logprobs: np.ndarray  # [S, K, k] f32


class Drafted(NamedTuple):
    """A sequence, with what the tree builder gets at each root."""

    tokens: list[int]  # [S]
    prompt_tokens: int
    guesses: dict[int, Guesses]  # root position -> guesses of the row before it
    rankings: dict[int, Ranking]
    grown: dict[tuple[int, int], DraftTree]  # (root position, deepest draft) -> the largest tree so far

    def tree(self, root: int, config: TreeConfig) -> DraftTree:
        """The tree at this root, no deeper than the text. A dynamic tree is the beginning of every
        larger one of its depth, so the largest is grown once.
        """
        max_depth = len(self.tokens) - root - 2
        if max_depth < 1:
            return root_only(self.tokens[root])
        inputs = self.tokens[root], self.guesses[root], self.rankings[root], max_depth
        if config.kind != DYNAMIC:
            return build_tree(config, *inputs)
        key = root, min(max_depth, config.depth or max_depth)
        tree = self.grown.get(key)
        if tree is None or len(tree.tokens) < config.rows:
            rows = max(config.rows, 4 * len(tree.tokens) if tree else 16)
            tree = self.grown[key] = build_tree(TreeConfig("dynamic", rows, None, config.depth), *inputs)
        return tree.first(config.rows, config.least)


class Replay(NamedTuple):
    tokens: int
    steps: int
    undrafted: int  # steps without drafts, because no source ended the path before
    accepted_by_depth: list[int]  # [d]: steps that accepted at least d + 1 drafts
    rows: int = 0  # of the trees in the steps with drafts, together

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def mean_rows(self) -> float:
        """Rows of a tree, in the steps with drafts."""
        drafted = self.steps - self.undrafted
        return self.rows / drafted if drafted else 1.0

    def plus(self, other: "Replay") -> "Replay":
        """Both together."""
        size = max(len(self.accepted_by_depth), len(other.accepted_by_depth))
        counts = [
            replayed.accepted_by_depth + [0] * (size - len(replayed.accepted_by_depth))
            for replayed in (self, other)
        ]
        return Replay(
            self.tokens + other.tokens,
            self.steps + other.steps,
            self.undrafted + other.undrafted,
            [sum(pair) for pair in zip(*counts, strict=True)],
            self.rows + other.rows,
        )


@torch.no_grad()
def record(frozen: FrozenModel, heads: Heads, sequences: list[TokenSequence]) -> list[Recorded]:
    recorded = []
    for sequence in sequences:
        ids = torch.from_numpy(sequence.tokens).to(frozen.device)[None]
        real = frozen.real_rows(ids)
        first = sequence.prompt_tokens - 1
        anchors = torch.arange(first, ids.shape[1], device=frozen.device)[None]
        logprobs = F.log_softmax(heads(frozen, real, anchors)[0], -1)  # [A, K, V]
        best, best_ids = logprobs.topk(min(TOP_K, logprobs.shape[-1]), -1)
        padding = ((first, 0), (0, 0), (0, 0))
        recorded.append(
            Recorded(sequence, np.pad(best_ids.cpu().numpy(), padding), np.pad(best.cpu().numpy(), padding))
        )
    return recorded


def rank(recorded: list[Recorded], correction: PathCorrection | None, greedy: bool) -> list[Drafted]:
    """Rankings of all guesses, which trees of any kind share. greedy: how the sequences
    were decoded.
    """
    drafted = []
    for sequence, top_ids, top_logprobs in recorded:
        roots = range(sequence.prompt_tokens, len(sequence.tokens) - 1)
        guesses = {root: Guesses(top_ids[root - 1], top_logprobs[root - 1]) for root in roots}
        rankings = {
            root: correction.rank(int(sequence.tokens[root]), found, greedy)
            if correction
            else independent(found)
            for root, found in guesses.items()
        }
        drafted.append(Drafted(sequence.tokens.tolist(), sequence.prompt_tokens, guesses, rankings, {}))
    return drafted


class Outcome(NamedTuple):
    """The fate of the tree at one root."""

    accept_length: int
    end_rank: int  # of the row that ended the path, among the tree's likely ends
    rows: int = 1  # of the tree


def replay(
    sequences: list[Drafted], config: TreeConfig, known: dict[tuple[int, int], Outcome] | None = None
) -> Replay:
    """Decode the sequences again with this tree. `known` may be shared by trees that differ in
    draft sources alone.
    """
    known = {} if known is None else known
    tokens = steps = undrafted = rows = 0
    by_depth: list[int] = []
    for index, drafted in enumerate(sequences):
        root = drafted.prompt_tokens
        has_drafts = True
        end = len(drafted.tokens) - 1
        while root < end:
            if has_drafts and (index, root) not in known:
                known[index, root] = _outcome(drafted, root, config)
            outcome = known[index, root] if has_drafts else Outcome(0, 0)
            undrafted += not has_drafts
            rows += outcome.rows if has_drafts else 0
            has_drafts = not config.draft_sources or outcome.end_rank < config.draft_sources
            by_depth += [0] * (outcome.accept_length - len(by_depth))
            for depth in range(outcome.accept_length):
                by_depth[depth] += 1
            root += outcome.accept_length + 1
            tokens += outcome.accept_length + 1
            steps += 1
    return Replay(tokens, steps, undrafted, by_depth, rows)


def _outcome(drafted: Drafted, root: int, config: TreeConfig) -> Outcome:
    text = drafted.tokens
    tree = drafted.tree(root, config)
    end = 0
    for node in range(1, len(tree.tokens)):
        if tree.parents[node] == end and tree.tokens[node] == text[root + tree.depths[node]]:
            end = node
    return Outcome(tree.depths[end], likely_ends(tree).index(end), len(tree.tokens))


def accepted_ranks(sequences: list[Drafted]) -> list[tuple[int, ...]]:
    """Paths of ranks that the text took, one for every root, as far as the guesses reach: () when
    not even the first is among them.
    """
    paths = []
    for drafted in sequences:
        for root, ranking in drafted.rankings.items():
            path = []
            place = 0
            for depth, ids in enumerate(drafted.guesses[root].top_ids[: len(drafted.tokens) - root - 1]):
                places, _ = ranking.children(depth + 1, place)
                rank_of = np.flatnonzero(ids[places] == drafted.tokens[root + depth + 1])
                if not len(rank_of):
                    break
                path.append(int(rank_of[0]))
                place = places[rank_of[0]]
            paths.append(tuple(path))
    return paths
