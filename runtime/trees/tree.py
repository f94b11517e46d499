"""Draft trees: which guesses a step verifies, and which rows draft the next step.

In: this step's guesses and their ranking. Out: a DraftTree and its draft sources. A tree is a list
of nodes in topological order; node 0 is the root, the decided token that has no keys and values
yet.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.arguments import integer, real
from firp.runtime.errors import FirpError
from firp.runtime.trees.guesses import Guesses, Ranking

FIRP, LOOKUP = "firp", "lookup"
DRAFTERS = (FIRP, LOOKUP)  # what paths may come from: pseudo rows, and the text so far
GRAMMAR = "grammar"  # paths that the grammar of a request forces; they join any other drafter's
STATIC, DYNAMIC, CHAIN = "static", "dynamic", "chain"
MAX_PASS_ROWS = 1024  # of one pass, pseudo rows included: a bound for buffers, not a target


@dataclass(frozen=True)
class TreeConfig:
    """Rules by which a step's tree is made, and the rows that the next step's guesses come from
    (tree.json).

    kind "static": the same paths every step; a path is a tuple of ranks, (0, 1) = the second guess
    after the first guess. kind "dynamic": the most probable paths by this step's own probabilities,
    as many as fit in `rows`. kind "chain": one path, of the most probable guess after each other one.
    Drafts come from pseudo rows that ride in the verifying pass (fused),
    or, with draft_sources 0, from a draft pass of the accepted row after acceptance (method.md,
    "One decode step").
    """

    kind: str = "dynamic"
    rows: int = 6  # T: nodes with the root
    # M: how many of the rows draft for the next step; None: every row; 0: a draft pass
    draft_sources: int | None = 3
    depth: int | None = None  # offsets drafted, at most K; None: all
    paths: tuple[tuple[int, ...], ...] = ()
    drafters: tuple[str, ...] = (FIRP,)  # whose paths it holds, in the order of `DRAFTERS`; or GRAMMAR alone
    least: float = 0.0  # probability of a path below which a dynamic tree leaves it out

    def __post_init__(self):
        """Numbers and paths of other types become Python's; what is none of them, `validate` names."""
        for name in ("rows", "draft_sources", "depth"):
            value = getattr(self, name)
            object.__setattr__(self, name, _plain(value))
        object.__setattr__(self, "least", _plain(self.least, real))
        for name in ("paths", "drafters"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        if isinstance(self.paths, tuple):
            object.__setattr__(self, "paths", tuple(map(_ranks, self.paths)))

    @staticmethod
    def lookup(rows: int, least: float = 0.0) -> "TreeConfig":
        """Paths copied from the text so far; needs no predictors."""
        return TreeConfig("dynamic", rows, 0, drafters=(LOOKUP,), least=least)

    @staticmethod
    def chain(depth: int, draft_sources: int | None = None) -> "TreeConfig":
        """The best guess of each offset, one after the other."""
        return TreeConfig(CHAIN, depth + 1, draft_sources)

    @staticmethod
    def forced(rows: int = 8) -> "TreeConfig":
        """What the grammar of a request forces, and nothing else; needs no predictors."""
        return TreeConfig(CHAIN, rows, 0, drafters=(GRAMMAR,))

    @staticmethod
    def static(paths: list[tuple[int, ...]], draft_sources: int | None = None) -> "TreeConfig":
        """A tree of the same paths at every step; a path is a tuple of ranks."""
        return TreeConfig("static", len(paths) + 1, draft_sources, paths=tuple(tuple(path) for path in paths))

    def pass_rows(self, num_predictors: int) -> int:
        """R: the most rows of one pass, pseudo rows included."""
        if FIRP not in self.drafters:
            return self.rows
        sources = self.rows if self.draft_sources is None else min(self.draft_sources, self.rows)
        return max(self.rows + sources * num_predictors, 1 + num_predictors)

    def validate(self, num_predictors: int) -> None:
        """Check the rules. Raises FirpError when the tree is malformed, or deeper than the
        predictors reach.
        """
        numbers = [self.rows, *(n for n in (self.draft_sources, self.depth) if n is not None)]
        if not isinstance(self.paths, tuple) or not all(isinstance(path, tuple) for path in self.paths):
            raise FirpError(
                "bad tree paths", got=f"{self.paths!r:.60}", expected="a tuple of tuples of ranks"
            )
        for number in (*numbers, *(rank for path in self.paths for rank in path)):
            if type(number) is not int:
                raise FirpError("bad number in a tree", got=f"{number!r:.60}", expected="a whole number")
        if type(self.least) not in (int, float) or not isinstance(self.drafters, tuple):
            got = f"drafters {self.drafters!r:.40}, least {self.least!r:.40}"
            raise FirpError("bad tree", got=got, expected="a tuple of names, a number")
        if self.kind not in (STATIC, DYNAMIC, CHAIN):
            raise FirpError("unknown tree kind", got=repr(self.kind), expected="static, dynamic or chain")
        in_order = tuple(name for name in DRAFTERS if name in self.drafters)
        if not self.drafters or self.drafters not in (in_order, (GRAMMAR,)):
            expected = f"one or more of {', '.join(DRAFTERS)}, in this order"
            raise FirpError(
                "unknown drafters", got=", ".join(map(str, self.drafters)) or "none", expected=expected
            )
        if FIRP in self.drafters and not num_predictors:
            fix = "export it with --predictors, or draft by lookup"
            raise FirpError("the bundle has no predictors", got="a tree of FIRP drafts", fix=fix)
        if not 0 <= self.least < 1:
            raise FirpError("bad least probability of a path", got=self.least, expected="0 or more, below 1")
        if self.rows < 1 or (self.draft_sources is not None and self.draft_sources < 0):
            got = f"rows {self.rows}, draft_sources {self.draft_sources}"
            raise FirpError("bad tree size", got=got, expected="at least 1 row, 0 or more sources")
        if self.depth is not None and not 1 <= self.depth <= num_predictors:
            raise FirpError("bad tree depth", got=self.depth, expected=f"1 to {num_predictors}")
        rows = self.pass_rows(num_predictors)
        if rows > MAX_PASS_ROWS:
            raise FirpError(
                "tree too large", got=f"{rows} rows with its pseudo rows", expected=f"at most {MAX_PASS_ROWS}"
            )
        if self.kind == STATIC and (self.drafters != (FIRP,) or self.least):
            got = f"{', '.join(self.drafters)}, least {self.least}"
            raise FirpError("a static tree is FIRP's alone", got=got, fix="use kind dynamic")
        if FIRP not in self.drafters and (self.depth is not None or self.draft_sources):
            what = f"{self.drafters[0]} has no pseudo rows"
            got = f"depth {self.depth}, draft_sources {self.draft_sources}"
            raise FirpError(what, got=got, expected="depth null, draft_sources 0")
        deepest = self.depth or num_predictors
        if self.kind == CHAIN and self.drafters == (FIRP,) and self.rows - 1 > deepest:
            got = f"a chain of {self.rows - 1} drafts"
            raise FirpError("tree path deeper than the predictors", got=got, expected=f"at most {deepest}")
        if self.kind != STATIC:
            if self.paths:
                raise FirpError(
                    f"a {self.kind} tree has no paths", got=f"{len(self.paths)} paths", fix="use kind static"
                )
            return
        if self.rows != len(self.paths) + 1:
            raise FirpError(
                "rows do not match the paths", got=f"rows {self.rows}", expected=len(self.paths) + 1
            )
        seen = {()}
        for path in self.paths:
            if not path or path in seen or path[:-1] not in seen or min(path) < 0:
                raise FirpError("bad tree path", got=path, expected="each path once, after its own prefix")
            if len(path) > deepest:
                expected = f"at most {deepest} ranks"
                raise FirpError("tree path deeper than the predictors", got=path, expected=expected)
            seen.add(path)


def _plain(value: Any, convert: Callable[[Any], Any] = integer) -> Any:
    """A number as Python's own; what is none, as it is."""
    found = convert(value)
    return value if found is None else found


def _ranks(path: Any) -> Any:
    return tuple(map(_plain, path)) if isinstance(path, list | tuple | np.ndarray) else path


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
