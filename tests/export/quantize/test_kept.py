"""Integers of a file's own: bit for bit, whatever its scales and least values are."""

import gguf
import numpy as np
import pytest

from firp.export.quantize.kept import kept_format, kept_integers
from firp.export.sources.checkpoint import Weight
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.precision import OFFSET_BLOCKS4

SCALES = (0, 2**-24, -0.001, 0.001, 0.0123, 1, 4096)
LEAST = (0, 2**-24, -(2**-24), 0.001, -0.0009, -0.0123, -0.12, -0.0155, -0.5, 300, -60000)


def odd_blocks(kind):
    """Blocks [n, bytes] with every scale beside every least value, and random integers."""
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    pairs = np.array([(scale, least) for scale in SCALES for least in LEAST], np.float16)
    blocks = np.random.default_rng(0).integers(0, 256, (len(pairs) + 1, nbytes), dtype=np.uint8)
    blocks[:-1, :4] = pairs.view(np.uint8)
    blocks[-1, :4] = 0
    return blocks, values


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K"])
def test_values_of_odd_blocks_are_those_of_the_file(kind, tmp_path):
    blocks, values = odd_blocks(kind)
    file = tmp_path / "blocks"
    file.write_bytes(blocks.tobytes())
    shape = (len(blocks), values)
    tensors = {"own": TensorRecord(file, "float32", shape, 0, blocks.nbytes, kind)}
    weight = Weight("layers.0.o_proj.weight", shape, ("own",))
    assert kept_format(weight, tensors) == OFFSET_BLOCKS4
    found = kept_integers(weight, tensors)
    own = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(found.values(), own)


def test_little_is_left_to_the_offset(tmp_path):
    """Of a block that zero lies in, half a step at the most."""
    own = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(own, gguf.GGMLQuantizationType.Q4_1)
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    tensors = {"own": TensorRecord(tmp_path / "blocks", "float32", own.shape, 0, blocks.nbytes, "Q4_1")}
    found = kept_integers(Weight("layers.0.o_proj.weight", own.shape, ("own",)), tensors)
    assert (np.abs(found.offset) <= found.scale / 2).all()
    assert found.zero_point.min() > 0
    np.testing.assert_array_equal(
        found.values(), gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)
    )
