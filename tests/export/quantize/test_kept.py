"""Integers of a file's own: bit for bit, whatever its scales and least values are."""

import gguf
import numpy as np
import pytest
from support.gguf_files import WIDE, write_gguf
from support.small_models import make_model

from firp.export.quantize.kept import kept_format, kept_integers
from firp.export.quantize.plan import make_plan
from firp.export.sources.checkpoint import Weight
from firp.export.sources.open import open_checkpoint
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, OFFSET_BLOCKS4, ROWS
from firp.runtime.progress import silent

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


def test_what_a_file_of_4_bits_holds_in_more_keeps_8(tmp_path):
    """As in Q4_K_M; a file without blocks of 4 bits is rounded to 4."""
    source = make_model(tmp_path / "model", "llama", changes=WIDE)
    for kind in ("Q4_K", "Q6_K"):
        write_gguf(tmp_path / f"{kind}.gguf", source, kind)
    mixed, finer = (open_checkpoint(tmp_path / f"{kind}.gguf") for kind in ("Q4_K", "Q6_K"))
    for name in ("0.self_attn.v_proj", "1.mlp.down_proj"):
        mixed.tensors[f"model.layers.{name}.weight"] = finer.tensors[f"model.layers.{name}.weight"]
    tokens = np.random.default_rng(0).integers(0, 64, (2, 64))
    linears = make_plan(mixed, "int4", tokens, tmp_path, silent).linears
    rounded = {name: linear.format.format for name, linear in linears.items() if not linear.format.kept}
    assert rounded == {"layers.0.qkv_proj": BLOCKS8, "layers.1.down_proj": BLOCKS8, "embed_tokens": ROWS}
    linears = make_plan(finer, "int4", tokens, tmp_path, silent).linears
    assert {linear.format.format for linear in linears.values()} == {BLOCKS4, ROWS}
