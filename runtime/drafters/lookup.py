"""Prompt lookup: drafts copied from the sequence's own tokens (Saxena 2023, "Prompt Lookup
Decoding"), as a tree, at no pass at all.

In: a sequence. Out: what followed its last tokens where they stood before. Every place where the
longest known n-gram stood is a guess; places that go on alike share nodes. A node's probability is
the share of places that agree on it, times how often a match of that length went on as before,
which is counted while the sequence is decoded.
"""

import heapq
from collections import defaultdict
from typing import NamedTuple

from firp.runtime.drafters.interface import Proposal
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.tree import DraftTree, grow, root_only
from firp.runtime.trees.tree_config import CHAIN, LOOKUP, TreeConfig

MAX_NGRAM = 4  # tokens of the longest n-gram that is indexed
MAX_MATCH = 16  # matches are told apart by length up to here
MAX_PLACES = 16  # that are followed, the latest first
PRIOR_TRIALS = 6.0  # how many observations the prior rates count for


class Place(NamedTuple):
    """A place in the sequence where the last tokens stood before."""

    follower: int  # index of the token that came next
    match: int  # how many tokens before it agree, at most MAX_MATCH


class LookupDrafter:
    """Drafts from the sequence itself. The tree has at most `tree.rows` nodes, none of them less
    probable than `tree.least`.
    """

    prompt_offsets = 0

    def __init__(self, tree: TreeConfig):
        self._config = tree
        self._tokens: list[int] = []  # indexed so far
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)  # n-gram -> indices after it
        self._places: list[Place] = []  # of the last proposal
        self._rates = MatchRates()

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        return Proposal(self.draft(sequence, max_depth))

    def draft(self, sequence: Sequence, max_depth: int) -> DraftTree:
        """The tree for the sequence's root."""
        self._read(sequence.tokens)
        return self._tree(sequence.root, max_depth)

    def observe(self, accepted: list[int], result: Pass) -> None:
        return  # what came is read from the sequence

    def _read(self, tokens: list[int]) -> None:
        """Learn from what came since the last proposal, then find where its end stood before."""
        known = len(self._tokens)
        places = self._places
        for token in tokens[known:] if known else ():
            if not places:
                break
            agreeing = [place for place in places if self._tokens[place.follower] == token]
            self._rates.count(max(place.match for place in places), bool(agreeing))
            places = self._next(agreeing)
        for index in range(known, len(tokens)):
            for size in range(1, min(MAX_NGRAM, index) + 1):
                self._followers[tuple(tokens[index - size : index])].append(index)
        self._tokens += tokens[known:]
        self._places = self._find()

    def _find(self) -> list[Place]:
        """Places where the longest n-gram at the end stood before, the latest first."""
        tokens = self._tokens
        for size in range(min(MAX_NGRAM, len(tokens)), 0, -1):
            if found := self._followers.get(tuple(tokens[-size:])):
                return [Place(index, self._match(index, size)) for index in reversed(found[-MAX_PLACES:])]
        return []

    def _match(self, follower: int, known: int) -> int:
        """Count the tokens before `follower` that are those at the end; `known` of them are."""
        tokens = self._tokens
        length = known
        while length < min(MAX_MATCH, follower) and tokens[follower - length - 1] == tokens[-length - 1]:
            length += 1
        return length

    def _next(self, places: list[Place]) -> list[Place]:
        """The places one token on, as far as the sequence reaches."""
        last = len(self._tokens) - 1
        return [
            Place(place.follower + 1, min(place.match + 1, MAX_MATCH))
            for place in places
            if place.follower < last
        ]

    def _tree(self, root: int, max_depth: int) -> DraftTree:
        """The most probable nodes first; a child is never more probable than its parent."""
        tree = root_only(root)
        least = self._config.least
        heap: list[tuple[float, int, int, int, list[Place]]] = []
        pushed = 0

        def expand(parent: int, places: list[Place]) -> None:
            nonlocal pushed
            if not places or tree.depths[parent] >= max_depth:
                return
            branches: dict[int, list[Place]] = defaultdict(list)
            for place in places:
                branches[self._tokens[place.follower]].append(place)
            rate = self._rates.of(max(place.match for place in places))
            weight = sum(place.match for place in places)
            if self._config.kind == CHAIN:
                likeliest = max(branches, key=lambda token: sum(place.match for place in branches[token]))
                branches = {likeliest: branches[likeliest]}
            for token, branch in branches.items():
                share = sum(place.match for place in branch) / weight
                probability = tree.probabilities[parent] * rate * share
                if probability >= least:
                    heapq.heappush(heap, (-probability, pushed, parent, token, branch))
                    pushed += 1

        expand(0, self._places)
        while heap and len(tree.tokens) < self._config.rows:
            negative, _, parent, token, branch = heapq.heappop(heap)
            node = grow(tree, parent, token, -negative, LOOKUP)
            expand(node, self._next(branch))
        return tree


class MatchRates:
    """Rates at which the token after a match is one that followed before, by the match's length."""

    def __init__(self):
        self._trials = [PRIOR_TRIALS] * (MAX_MATCH + 1)
        self._hits = [PRIOR_TRIALS * prior_rate(length) for length in range(MAX_MATCH + 1)]

    def count(self, match: int, hit: bool) -> None:
        """Count one trial of a match of that length."""
        self._trials[match] += 1
        self._hits[match] += hit

    def of(self, match: int) -> float:
        """The rate for a match of that length."""
        return self._hits[match] / self._trials[match]


def prior_rate(match: int) -> float:
    """Before anything is counted: longer matches go on as before more often."""
    return 1.0 - 0.8 * 0.75 ** max(match - 1, 0)
