"""Trees from measured acceptance: the best static tree of each size, and the candidates that a
device chooses from.

In: sequences with ranked guesses (firp.calib.replay.replay). Out: `Candidate`s with what each tree
gives on them.
"""

import heapq
from collections import Counter

import numpy as np

from firp.calib.replay.drafters import replay_drafter
from firp.calib.replay.replay import Drafted, Replay, accepted_ranks, replay
from firp.runtime.bundle.calibration import Calibration, Candidate, Replayed
from firp.runtime.trees.tree_config import CHAIN, DRAFTERS, LOOKUP, MAX_PASS_ROWS, TreeConfig

ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SOURCES = (0, 1, 2, 3, 4, 8, None)
LEAST = 0.1  # a draft less probable than that is not worth its row, on many a device
LEAST_ROWS = (6, 12)  # trees that are tried with it too
LOOKUP_ROWS = (4, 8, 16)
MERGED_ROWS = (6, 12)
MERGED_SOURCES = (0, 2, None)
SHALLOW_ROWS = 8  # trees larger than this always draft every offset
CHAIN_SOURCES = (0, 1, 2, None)
CHAIN_LEAST = (LEAST, 0.3)  # a path has no second chance, and rows are dear on some devices
MERGED_CHAIN_ROWS = (4, 8, 16)
MERGED_CHAIN_SOURCES = (0, 1, 2)
_WIDTH = 32  # ranks that a static tree may use
# how many observations the product of marginals counts for, where a path was hardly ever seen
_PRIOR_WEIGHT = 30.0


def acceptance_by_rank(sequences: list[Drafted], num_predictors: int) -> np.ndarray:
    """[K, ranks]: how often the child of that rank is accepted, once its parent is."""
    reached, hits = np.zeros(num_predictors), np.zeros((num_predictors, _WIDTH))
    for path in accepted_ranks(sequences):
        for depth in range(num_predictors):
            reached[depth] += len(path) >= depth
        for depth, rank in enumerate(path):
            if rank < _WIDTH:
                hits[depth, rank] += 1
    return hits / np.maximum(reached, 1)[:, None]


def best_static_tree(sequences: list[Drafted], num_predictors: int, nodes: int) -> list[tuple[int, ...]]:
    """Paths of the tree of `nodes` drafts that accepts most: always the likeliest path on the
    frontier (method.md). Paths are counted as a whole; where they are rare, the product of their
    ranks' shares fills in.
    """
    marginals = acceptance_by_rank(sequences, num_predictors)
    seen = Counter()
    total = 0
    for path in accepted_ranks(sequences):
        total += 1
        seen.update(path[:depth] for depth in range(1, len(path) + 1))

    def probability(path: tuple[int, ...]) -> float:
        prior = float(np.prod([marginals[depth, rank] for depth, rank in enumerate(path)]))
        return (seen[path] + _PRIOR_WEIGHT * prior) / (total + _PRIOR_WEIGHT)

    frontier = [(-probability((rank,)), (rank,)) for rank in range(_WIDTH)]
    heapq.heapify(frontier)
    paths = []
    while frontier and len(paths) < nodes:
        _, path = heapq.heappop(frontier)
        paths.append(path)
        if len(path) < num_predictors:
            for rank in range(_WIDTH):
                heapq.heappush(frontier, (-probability((*path, rank)), (*path, rank)))
    return paths


def candidates(sequences: list[Drafted], num_predictors: int) -> list[tuple[TreeConfig, Replay]]:
    """Dynamic trees and chains over drafters, rows, draft sources, depth and least probability, with
    what each gives.
    """
    found = firp_candidates(sequences, num_predictors)
    trees = [TreeConfig.lookup(rows, LEAST) for rows in LOOKUP_ROWS]
    trees += [
        TreeConfig("dynamic", rows, sources, drafters=DRAFTERS, least=LEAST)
        for rows in MERGED_ROWS
        for sources in MERGED_SOURCES
    ]
    trees += [
        TreeConfig(CHAIN, rows, 0, drafters=(LOOKUP,), least=least)
        for rows in LOOKUP_ROWS
        for least in CHAIN_LEAST
    ]
    trees += [
        TreeConfig(CHAIN, rows, sources, drafters=DRAFTERS, least=least)
        for rows in MERGED_CHAIN_ROWS
        for sources in MERGED_CHAIN_SOURCES
        for least in CHAIN_LEAST
    ]
    for tree in trees:
        replayed = replay_drafter(sequences, tree, num_predictors)
        found.append((tree, replayed))
    return found


def firp_candidates(sequences: list[Drafted], num_predictors: int) -> list[tuple[TreeConfig, Replay]]:
    """Dynamic trees and chains of FIRP's drafts alone."""
    found = []
    for rows in ROWS:
        depths = [*range(1, num_predictors), None] if rows <= SHALLOW_ROWS else [None]
        shapes = [(depth, 0.0) for depth in depths]
        shapes += [(None, LEAST)] if rows in LEAST_ROWS else []
        for depth, least in shapes:
            known: dict = {}  # sources change no tree
            for sources in SOURCES:
                config = TreeConfig("dynamic", rows, sources, depth, least=least)
                if (sources is None or sources < rows) and config.pass_rows(num_predictors) <= MAX_PASS_ROWS:
                    found.append((config, replay(sequences, config, known)))
    for rows in range(2, num_predictors + 2):
        depth = rows - 1 if rows <= num_predictors else None
        for least in (0.0, *CHAIN_LEAST):
            known = {}
            for sources in CHAIN_SOURCES:
                config = TreeConfig(CHAIN, rows, sources, depth, least=least)
                if (sources is None or sources < rows) and config.pass_rows(num_predictors) <= MAX_PASS_ROWS:
                    found.append((config, replay(sequences, config, known)))
    return found


def as_calibration(
    by_text: dict[str, list[tuple[TreeConfig, Replay]]], model: str, precision: str
) -> Calibration:
    """calibration.json: the candidates, and what they were replayed on. model: its name; precision:
    that it wrote the texts and drafted in.
    """
    tokens = {text: trees[0][1].tokens if trees else 0 for text, trees in by_text.items()}
    return Calibration(tuple(as_candidates(by_text)), Replayed(model, precision, tokens))


def as_candidates(by_text: dict[str, list[tuple[TreeConfig, Replay]]]) -> list[Candidate]:
    """The same trees replayed on several texts, as calibration.json has them."""
    return [
        Candidate(
            trees[0][0],
            {
                text: round(replayed.tokens_per_step, 4)
                for text, (_, replayed) in zip(by_text, trees, strict=True)
            },
            {
                text: round(replayed.undrafted / max(replayed.steps, 1), 4)
                for text, (_, replayed) in zip(by_text, trees, strict=True)
            },
            {text: round(each.mean_rows, 3) for text, (_, each) in zip(by_text, trees, strict=True)},
        )
        for trees in zip(*by_text.values(), strict=True)
    ]
