"""Drafters of the runtime, replayed on text that the model has already decoded.

In: sequences with the recorded guesses of their rows, tree configurations. Out: a `Replay` of each.
The drafters are the runtime's own; the text stands for the session: it answers a draft pass with the
guesses that were recorded, and accepts what it holds.
"""

from typing import NamedTuple

from firp.calib.replay.replay import Drafted, Replay
from firp.runtime.drafters.make import make_drafter
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses, Ranking
from firp.runtime.trees.tree import DraftTree
from firp.runtime.trees.tree_config import TreeConfig


class DecodedText:
    """Stands for a session, at the sequence's root."""

    def __init__(self, drafted: Drafted, sequence: Sequence):
        self._drafted = drafted
        self._sequence = sequence

    def draft(self, offsets: int) -> Guesses:
        """What a draft pass would have given; the accepted row is the one before the root."""
        ids, logprobs = self._drafted.guesses[self._sequence.cached]
        return Guesses(ids[:offsets], logprobs[:offsets])


class RecordedRankings:
    """Stands for the path correction: the rankings of a text are made once, for all trees."""

    def __init__(self, drafted: Drafted, sequence: Sequence):
        self._drafted = drafted
        self._sequence = sequence

    def rank(self, root: int, guesses: Guesses, greedy: bool) -> Ranking:
        """The ranking at the sequence's root."""
        return self._drafted.rankings[self._sequence.cached]


class RecordedPass(NamedTuple):
    """Stands for the pass before the root, whose accepted row was a source or not."""

    guesses: Guesses | None

    def guesses_after(self, row: int) -> Guesses | None:
        return self.guesses


def replay_drafter(sequences: list[Drafted], tree: TreeConfig, num_predictors: int) -> Replay:
    """Decode the sequences again with the drafter of this tree, and the rankings they came with."""
    total = Replay(0, 0, 0, [])
    for drafted in sequences:
        total = total.plus(_replay_one(drafted, tree, num_predictors))
    return total


def _replay_one(drafted: Drafted, tree: TreeConfig, num_predictors: int) -> Replay:
    text, first = drafted.tokens, drafted.prompt_tokens
    request = Request(
        tuple(text[:first]), SamplingParams(max(len(text) - first, 1)), frozenset(), len(text) - first
    )
    sequence = Sequence(request, len(text))
    session = DecodedText(drafted, sequence)
    rankings = RecordedRankings(drafted, sequence)
    drafter = make_drafter(tree, num_predictors, rankings, greedy=True)
    tokens = steps = undrafted = rows = 0
    by_depth: list[int] = []
    sequence.extend(text[first : first + 1])
    drafter.observe([0], RecordedPass(_guesses(drafted, sequence, drafter.prompt_offsets)))
    while sequence.remaining > 0:
        proposal = drafter.propose(sequence, session, sequence.remaining - 1)
        path = _accepted(proposal.tree, text, sequence.cached)
        sequence.extend(text[sequence.cached + 1 : sequence.cached + 1 + len(path)])
        offsets = proposal.offsets if path[-1] in proposal.sources else 0
        drafter.observe(path, RecordedPass(_guesses(drafted, sequence, offsets)))
        by_depth += [0] * (len(path) - 1 - len(by_depth))
        for depth in range(len(path) - 1):
            by_depth[depth] += 1
        size = len(proposal.tree.tokens)
        undrafted += size == 1
        rows += size if size > 1 else 0
        tokens += len(path)
        steps += 1
    return Replay(tokens, steps, undrafted, by_depth, rows)


def _guesses(drafted: Drafted, sequence: Sequence, offsets: int) -> Guesses | None:
    """The recorded guesses of the row before the root, where it was a source."""
    recorded = drafted.guesses.get(sequence.cached) if offsets else None
    return Guesses(recorded.top_ids[:offsets], recorded.top_logprobs[:offsets]) if recorded else None


def _accepted(tree: DraftTree, text: list[int], root: int) -> list[int]:
    """Rows of the tree along the text that follows its root."""
    path = [0]
    for node in range(1, len(tree.tokens)):
        place = root + tree.depths[node]
        if tree.parents[node] == path[-1] and place < len(text) and tree.tokens[node] == text[place]:
            path.append(node)
    return path
