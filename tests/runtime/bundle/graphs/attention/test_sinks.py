"""Attention with sinks over buffers, alone: against float64, for several sequences, and a row the same to
the bit whatever rides beside it.
"""

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
from support.small_models import make_model

from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from firp.runtime.bundle.graphs.attention.sinks import attend_with_sinks
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.onnx_file import onnx_file
from firp.runtime.bundle.graphs.tape import Value

HEADS, PAIRS, SIZE, SLOTS = 4, 2, 16, 37


@pytest.fixture(scope="module")
def attend(tmp_path_factory):
    """A session of the nodes: query, keys, values, bias, sinks -> attended."""
    config = open_checkpoint(make_model(tmp_path_factory.mktemp("sinks") / "model", "qwen3")).config
    assert (config.attention.num_heads, config.attention.num_key_value_heads) == (HEADS, PAIRS)
    config = dataclasses.replace(config, attention=dataclasses.replace(config.attention, sinks=True))
    builder = GraphBuilder(config, "float32", {})
    shapes = {
        "query": ("B", "H", "T", SIZE),
        "keys": ("B", PAIRS, "S", SIZE),
        "values": ("B", PAIRS, "S", SIZE),
        "bias": ("B", "M", "T", "S"),
        "sinks": (HEADS,),
    }
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    out = attend_with_sinks(builder, *(Value(name) for name in shapes))
    out.name = "attended"
    spec = GraphSpec("sinks", None, inputs, (TensorSpec("attended", "float32", shapes["query"]),))
    session = ort.InferenceSession(onnx_file(spec, builder.tape, {}), providers=["CPUExecutionProvider"])
    return lambda **given: session.run(None, given)[0]


def drawn(rows):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    bias = np.where(rng.random((2, 1, rows, SLOTS)) < 0.4, np.finfo(np.float32).min, np.float32(0))
    return {
        "query": normal(2, HEADS, rows, SIZE),
        "keys": normal(2, PAIRS, SLOTS, SIZE),
        "values": normal(2, PAIRS, SLOTS, SIZE),
        "bias": bias,
        "sinks": normal(HEADS),
    }


def by_row(given):
    """The same, every row a head of its own."""
    query, bias = given["query"], np.tile(given["bias"], (1, HEADS, 1, 1))
    rows = {"query": query.reshape(2, -1, 1, SIZE), "bias": bias.reshape(2, -1, 1, SLOTS)}
    return given | rows


def truth(given):
    wide = {name: value.astype(np.float64) for name, value in given.items()}
    keys, values = (np.repeat(wide[name], HEADS // PAIRS, 1) for name in ("keys", "values"))
    scores = wide["query"] @ keys.swapaxes(2, 3) + wide["bias"]
    column = np.broadcast_to(wide["sinks"][None, :, None, None], (*scores.shape[:3], 1))
    shares = np.exp(np.concatenate([scores, column], -1) - scores.max(-1, keepdims=True))
    return shares[..., :-1] / shares.sum(-1, keepdims=True) @ values


def test_a_sink_takes_its_share(attend):
    given = drawn(rows=5)
    assert np.abs(attend(**given) - truth(given)).max() < 1e-5
    assert np.abs(attend(**by_row(given)).reshape(2, HEADS, 5, SIZE) - truth(given)).max() < 1e-5
    none = given | {"sinks": np.full(HEADS, -1e9, np.float32)}
    assert np.abs(attend(**given) - attend(**none)).max() > 0.05


def test_a_row_has_the_same_bits_alone(attend):
    given = drawn(rows=6)
    together = attend(**by_row(given)).reshape(2, HEADS, 6, SIZE)
    for row in range(6):
        alone = given | {name: given[name][:, :, row : row + 1] for name in ("query", "bias")}
        assert np.array_equal(attend(**by_row(alone))[:, :, 0], together[:, :, row])
