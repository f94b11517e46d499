"""The limits of what is built for a size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes that TensorRT plans hold, and so every session that runs on them."""

    max_context: int = 4096  # tokens of one sequence, cached ones and those of the pass
    max_batch: int = 1  # sequences of a decoding pass
    max_rows: int = 64  # of each of them in it, pseudo rows included
