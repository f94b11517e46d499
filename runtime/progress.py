"""Progress of work that takes long: one signature, for those who report and those who show."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]  # (stage, done, total); None: nobody knows the total


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""
