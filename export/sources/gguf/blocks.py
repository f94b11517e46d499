"""Blocks of quantized values, as GGUF files keep them.

In: the bytes of whole blocks, and GGUF's name of their type. Out: the values that they stand for, in
float32, as the package `gguf` computes them.
"""

from typing import NamedTuple

import numpy as np

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4")  # that firp reads
# Blocks that are decoded together: the package goes through rows 16 at a time, so rows of one block
# would be slow, and one row of all of them leaves the processor's cache.
_TOGETHER = 64


class BlockSizes(NamedTuple):
    """What one block is."""

    values: int  # that it stands for
    nbytes: int


def block_sizes(blocks: str) -> BlockSizes:
    """The sizes of a type of blocks."""
    import gguf

    return BlockSizes(*gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[blocks]])


def dequantize(content: np.ndarray, blocks: str) -> np.ndarray:
    """Values [n] f32 of whole blocks, bytes [m] u8."""
    import gguf

    width = block_sizes(blocks).nbytes * _TOGETHER
    full = len(content) // width * width
    kind = gguf.GGMLQuantizationType[blocks]
    parts = [content[:full].reshape(-1, width), content[full:].reshape(1, -1)]
    with np.errstate(all="ignore"):  # scales that are not finite show in the values
        values = [gguf.quants.dequantize(part, kind).reshape(-1) for part in parts if part.size]
    return values[0] if len(values) == 1 else np.concatenate(values)
