"""What a pass sees of the cached keys and values.

In: a cache and the rows of a pass. Out: where slots and rows stand in the pass's mask.
"""

from typing import NamedTuple


class View(NamedTuple):
    """Columns of a pass's mask."""

    slots: int  # of the slabs that go in
    columns: int  # of the mask
    first: int  # column of the pass's first row; cached tokens lie in the columns of their number
