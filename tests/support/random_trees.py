"""Random guesses and draft trees, for properties that hold of all of them."""

import numpy as np
from hypothesis import strategies

from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import DraftTree, grow, root_only

ROOT = 7
MANY = 50  # token ids
WEIGHTS = strategies.integers(1, 60)


@strategies.composite
def guesses(draw) -> Guesses:
    """Lists of three offsets, as a graph gives them: ids differ, the most probable first."""
    width = draw(strategies.integers(1, 5))
    ids = [
        draw(strategies.lists(strategies.integers(0, MANY), min_size=width, max_size=width, unique=True))
        for _ in range(3)
    ]
    weights = [
        sorted(draw(strategies.lists(WEIGHTS, min_size=width, max_size=width)), reverse=True)
        for _ in range(3)
    ]
    probabilities = [np.array(row, np.float32) / (sum(row) + 5) for row in weights]
    return Guesses(np.array(ids, np.int64), np.log(probabilities))


@strategies.composite
def trees(draw, most: int = 12, tokens: int = 4) -> DraftTree:
    """Any tree of some nodes below `ROOT`: siblings differ, no child is more probable than its parent,
    and all children together are no more probable than it.
    """
    tree = root_only(ROOT)
    left = [1.0]  # of each node's probability, what no child has
    places = set()
    for _ in range(draw(strategies.integers(0, most - 1))):
        parent = draw(strategies.integers(0, len(tree.tokens) - 1))
        token = draw(strategies.integers(0, tokens - 1))
        if (parent, token) not in places:
            places.add((parent, token))
            probability = left[parent] * draw(WEIGHTS) / 64
            left[parent] -= probability
            left.append(probability)
            grow(tree, parent, token, probability)
    return tree


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    """The token path from below the root to each node."""
    paths = [()]
    for node in range(1, len(tree.tokens)):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    return paths
