"""Draft trees: which guesses a step verifies, and which rows draft the next step.

In: this step's guesses and their ranking. Out: a DraftTree and its draft sources. A tree is a list
of nodes in topological order; node 0 is the root, the decided token that has no keys and values
yet.
"""

import heapq
from typing import NamedTuple

import numpy as np

from firp.runtime.trees.guesses import Guesses, Ranking
from firp.runtime.trees.tree_config import CHAIN, FIRP, STATIC, TreeConfig


class DraftTree(NamedTuple):
    """Nodes of one tree in topological order; node 0 is the root."""

    tokens: list[int]  # [T] token ids
    parents: list[int]  # [T] index of each node's parent, always smaller than its own; -1 for the root
    depths: list[int]  # [T]
    probabilities: list[float]  # [T] of the path to each node, as the guesses see it
    drafters: list[str]  # [T] whose guess each node is; "" for the root

    def first(self, rows: int, least: float) -> "DraftTree":
        """Its beginning: at most so many nodes, and no draft less probable than `least`, where they
        are in order of probability.
        """
        end = min(rows, len(self.tokens))
        while end > 1 and self.probabilities[end - 1] < least:
            end -= 1
        return DraftTree(*(values[:end] for values in self))


def root_only(token: int) -> DraftTree:
    """A tree without drafts."""
    return DraftTree([token], [-1], [0], [1.0], [""])


def chain(tokens: list[int]) -> DraftTree:
    """Tokens one after the other: a piece of a prompt."""
    rows = len(tokens)
    return DraftTree(tokens, list(range(-1, rows - 1)), list(range(rows)), [1.0] * rows, [""] * rows)


def build_tree(
    config: TreeConfig, root: int, guesses: Guesses, ranking: Ranking, max_depth: int
) -> DraftTree:
    """The tree of this step, no deeper than `max_depth`, from the root token and the ranked guesses
    of its source.
    """
    depth = min(max_depth, len(guesses.top_ids), config.depth or len(guesses.top_ids))
    if config.kind == STATIC:
        return _static_tree(config.paths, root, guesses.top_ids, ranking, depth)
    if config.kind == CHAIN:
        return _chain_tree(config, root, guesses.top_ids, ranking, depth)
    return _dynamic_tree(config, root, guesses.top_ids, ranking, depth)


def _static_tree(
    paths: tuple[tuple[int, ...], ...], root: int, top_ids: np.ndarray, ranking: Ranking, max_depth: int
) -> DraftTree:
    tree = root_only(root)
    node_of = {(): 0}
    listed = [0]  # each node's place in the guesses of its offset
    for path in paths:
        depth, rank = len(path), path[-1]
        if depth > max_depth or rank >= top_ids.shape[1] or path[:-1] not in node_of:
            continue
        parent = node_of[path[:-1]]
        node_of[path] = len(tree.tokens)
        places, probabilities = ranking.children(depth, listed[parent])
        listed.append(places[rank])
        grow(
            tree,
            parent,
            int(top_ids[depth - 1, places[rank]]),
            tree.probabilities[parent] * probabilities[rank],
        )
    return tree


def _chain_tree(
    config: TreeConfig, root: int, top_ids: np.ndarray, ranking: Ranking, max_depth: int
) -> DraftTree:
    """The best guess after each other, as long as the path is no less probable than `least`."""
    tree = root_only(root)
    place = 0
    for depth in range(1, min(max_depth, config.rows - 1) + 1):
        places, probabilities = ranking.children(depth, place)
        place = places[0]
        probability = tree.probabilities[-1] * probabilities[0]
        if probability < config.least:
            break
        grow(tree, depth - 1, int(top_ids[depth - 1, place]), probability)
    return tree


def _dynamic_tree(
    config: TreeConfig, root: int, top_ids: np.ndarray, ranking: Ranking, max_depth: int
) -> DraftTree:
    """The `rows` - 1 most probable paths, none below `least`. A node's children come in order of
    probability, so the frontier holds one sibling and one child for each node taken: the greedy
    order is the exact one.
    """
    rows = config.rows
    tree = root_only(root)
    if rows == 1 or max_depth < 1:
        return tree
    width = top_ids.shape[1]
    listed = [0]
    children = {0: ranking.children(1, 0)}  # node -> places and probabilities of its children
    heap = [(-children[0][1][0], 0, 1, 0)]  # (-path probability, parent, depth, rank)
    while heap and len(tree.tokens) < rows and -heap[0][0] >= config.least:
        negative, parent, depth, rank = heapq.heappop(heap)
        node = len(tree.tokens)
        places, probabilities = children[parent]
        listed.append(places[rank])
        grow(tree, parent, int(top_ids[depth - 1, places[rank]]), -negative)
        if rank + 1 < width:
            heapq.heappush(
                heap, (-tree.probabilities[parent] * probabilities[rank + 1], parent, depth, rank + 1)
            )
        if depth < max_depth:
            children[node] = ranking.children(depth + 1, listed[node])
            heapq.heappush(heap, (negative * children[node][1][0], node, depth + 1, 0))
    return tree


def grow(tree: DraftTree, parent: int, token: int, probability: float, drafter: str = FIRP) -> int:
    """Add a node below `parent`; returns its index."""
    tree.tokens.append(token)
    tree.parents.append(parent)
    tree.depths.append(tree.depths[parent] + 1)
    tree.probabilities.append(float(probability))
    tree.drafters.append(drafter)
    return len(tree.tokens) - 1


def merge_trees(trees: list[DraftTree], rows: int) -> DraftTree:
    """The `rows` most probable nodes of trees with one root token. A node that several hold has its
    highest probability, so no child is more probable than its parent, and is the guess of whoever gave
    it that.
    """
    union = root_only(trees[0].tokens[0])
    children: list[dict[int, int]] = [{}]  # of each node: token -> node
    for tree in trees:
        places = [0]
        for node in range(1, len(tree.tokens)):
            parent = places[tree.parents[node]]
            token = tree.tokens[node]
            probability = tree.probabilities[node]
            place = children[parent].get(token)
            if place is None:
                place = children[parent][token] = grow(union, parent, token, probability, tree.drafters[node])
                children.append({})
            if probability > union.probabilities[place]:
                union.probabilities[place] = probability
                union.drafters[place] = tree.drafters[node]
            places.append(place)
    if len(union.tokens) <= rows:
        return union
    merged = root_only(union.tokens[0])
    heap = [(-union.probabilities[node], node, 0) for node in children[0].values()]
    heapq.heapify(heap)
    while len(merged.tokens) < rows:
        negative, node, parent = heapq.heappop(heap)
        place = grow(merged, parent, union.tokens[node], -negative, union.drafters[node])
        for child in children[node].values():
            heapq.heappush(heap, (-union.probabilities[child], child, place))
    return merged


def likely_path(tree: DraftTree, rows: int) -> DraftTree:
    """The path of at most so many nodes from the root on, always to the most probable child."""
    best: dict[int, int] = {}
    for node, parent in enumerate(tree.parents[1:], 1):
        known = best.get(parent)
        if known is None or tree.probabilities[node] > tree.probabilities[known]:
            best[parent] = node
    path = root_only(tree.tokens[0])
    node = 0
    while len(path.tokens) < rows and node in best:
        node = best[node]
        grow(path, len(path.tokens) - 1, tree.tokens[node], tree.probabilities[node], tree.drafters[node])
    return path


def draft_sources(tree: DraftTree, count: int | None) -> list[int]:
    """The rows most likely to end the accepted path, in row order; None: every row."""
    if count is None or count >= len(tree.tokens):
        return list(range(len(tree.tokens)))
    return sorted(likely_ends(tree)[:count])


def likely_ends(tree: DraftTree) -> list[int]:
    """All rows, the one most likely to end the accepted path first: P(path) minus that of the
    node's own children.
    """
    ends = list(tree.probabilities)
    for node, parent in enumerate(tree.parents[1:], 1):
        ends[parent] -= tree.probabilities[node]
    return sorted(range(len(ends)), key=lambda node: (-ends[node], node))
