"""Findings of a verification.

In: measured values with their limits. Out: `Check`s, and the `Report` that the manifest and
`firp verify --json` hold.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from firp.runtime.tuning.parity import Difference


class Tie(NamedTuple):
    """A run that left the plain run at a near tie."""

    tree: str  # that the run drafted with; "generate" is Hugging Face's
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the tree, and the fields of the difference."""
        return {"tree": self.tree, **self.difference._asdict()}


class Check(NamedTuple):
    """One measured value and its limit."""

    name: str
    passed: bool
    # What was measured: distance from the reference in units of what rounding costs
    # (`rounding.py`), a largest difference, or a count of tokens or runs that differ.
    value: float
    limit: float
    near_ties: tuple[Tie, ...] = ()  # met on the way, whether excused or not

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the name, the outcome, the value and its limit."""
        return {"name": self.name, "passed": self.passed, "value": self.value, "limit": self.limit}


@dataclass(frozen=True)
class Report:
    """All checks of one bundle."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Tell whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def near_ties(self) -> list[Tie]:
        """Near ties that all checks met."""
        return [tie for check in self.checks for tie in check.near_ties]

    def to_json(self) -> dict[str, Any]:
        """A JSON object as the manifest and `firp verify --json` hold it."""
        return {
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "near_ties": [tie.to_json() for tie in self.near_ties],
        }
