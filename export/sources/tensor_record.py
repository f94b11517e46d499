"""Where one tensor of a checkpoint lies, and how its bytes become values."""

from pathlib import Path
from typing import NamedTuple


class TensorRecord(NamedTuple):
    """The place of one tensor in a file. `offset` counts bytes from the beginning of the file."""

    file: Path
    dtype: str  # of its values as they are read; float32 where the file keeps them in blocks
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    # GGUF's name of the blocks that the file keeps ("Q4_1"); None: its values lie there as they are
    blocks: str | None = None
    # of a GGUF file, whose rows stand in pairs that rotary embedding turns: heads that the rows are of
    paired_heads: int | None = None

    @property
    def storage(self) -> str:
        """What the file holds: a type of values, or of blocks."""
        return self.blocks or self.dtype
