"""Arguments of public functions, and fields of public dataclasses: checked and converted once.

In: a value as a caller gave it. Out: the same of Python's own types (numpy's numbers wrap around, a
text may name a path), or a FirpError that names it and what it may be.
"""

import numbers
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.errors import FirpError


class Rule(NamedTuple):
    """What a value may be."""

    convert: Callable[[Any], Any]  # None: it is of another type
    good: Callable[[Any], bool]  # of what it was converted to
    expected: str
    optional: bool = False  # None is a value too

    def or_none(self) -> "Rule":
        """The same, or None."""
        return self._replace(optional=True, expected=f"{self.expected}, or None")


def checked(name: str, value: Any, rule: Rule) -> Any:
    """The value, converted. Raises FirpError."""
    if value is None and rule.optional:
        return None
    found = rule.convert(value)
    if found is None or not rule.good(found):
        raise FirpError(f"bad {name.replace('_', ' ')}", got=f"{value!r:.100}", expected=rule.expected)
    return found


def check_fields(made: Any, rules: Mapping[str, Rule]) -> None:
    """Check and convert fields of a frozen dataclass that was just made. Raises FirpError."""
    for name, rule in rules.items():
        object.__setattr__(made, name, checked(name, getattr(made, name), rule))


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number of a range, both ends included."""
    if most is None:
        return Rule(integer, lambda value: value >= least, f"a whole number, at least {least}")
    return Rule(integer, lambda value: least <= value <= most, f"a whole number, {least} to {most}")


def at_least(least: float) -> Rule:
    """A finite number that is not below another."""
    return Rule(real, lambda value: least <= value < float("inf"), f"at least {least}, finite")


def more_than_0(most: float) -> Rule:
    """A number in a range that does not hold 0."""
    at_most = f" and at most {most}" if most < float("inf") else ", finite"
    return Rule(real, lambda value: 0 < value <= most and value < float("inf"), f"more than 0{at_most}")


def one_of(names: Sequence[str]) -> Rule:
    """One of several names."""
    return Rule(
        lambda value: value if isinstance(value, str) else None,
        lambda value: value in names,
        " or ".join(names),
    )


def instance(kind: type) -> Rule:
    """An instance of a class."""
    return Rule(
        lambda value: value if isinstance(value, kind) else None, lambda value: True, f"a {kind.__name__}"
    )


def integer(value: Any) -> int | None:
    """A whole number of any integer type, numpy's among them; None for anything else, truth values
    too.
    """
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """A number of any type; None for anything else, truth values too, and for what no float holds."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def truth(value: Any) -> bool | None:
    """True or False, numpy's among them; None for anything else."""
    return bool(value) if isinstance(value, bool | np.bool_) else None


def _path(value: Any) -> Path | None:
    if (
        not isinstance(value, str | os.PathLike)
        or not os.fspath(value)
        or isinstance(os.fspath(value), bytes)
    ):
        return None
    return Path(value)


TEXT = instance(str)._replace(expected="text")
TRUTH = Rule(truth, lambda value: True, "True or False")
PATH = Rule(_path, lambda value: "\0" not in str(value), "a path")
