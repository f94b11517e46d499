"""The tokens before a row, in two parts, so that no pick copies or counts those that stay.

In: the decided tokens of a sequence, and those that a walk has picked since. Out: a `Context`.
"""

from typing import NamedTuple


class Context(NamedTuple):
    """What stands before the token that a row gives, prompt included, along the row's own path."""

    decided: list[int]  # of the sequence; the same list from pass to pass, which only grows
    path: list[int]  # picked after them in this pass

    @property
    def position(self) -> int:
        """The index of the next token in the whole sequence."""
        return len(self.decided) + len(self.path)
