"""The rules by which draft trees are made: their kind and size, and whose paths they hold.

In: numbers and names, as tree.json or a caller gives them. Out: `TreeConfig`, checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from firp.runtime.arguments import integer, real
from firp.runtime.errors import FirpError

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
