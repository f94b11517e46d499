"""Bytes and FLOPs of a pass against the weight files and the ONNX graphs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from support.cuda_double import CudaDouble

from firp.calib.targets import peaks
from firp.calib.targets.cost import Cost, Peaks, Point, pass_cost, roofline
from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, OFFSET_BLOCKS4, ROWS, LinearFormat, Quantization
from firp.runtime.bundle.weight_table import weight_shapes

FAMILIES = ("llama_untied_biases", "qwen2", "qwen3", "mistral_window")


def costs(loaded, point):
    return {name: pass_cost(loaded.manifest, name, point) for name in loaded.manifest.graphs}


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_weights_are_those_of_the_file(family_bundle, family):
    """What both halves read is the whole file, but for rope tables, and of the embedding the rows
    that are looked up.
    """
    loaded = load_bundle(family_bundle(family)[1])
    rows, c = 5, loaded.manifest.model
    with safe_open(loaded.path / "model.safetensors", "np") as file:
        stored = {name: file.get_tensor(name).nbytes for name in file.keys() if not name.startswith("rope.")}  # noqa: SIM118
    expected = sum(stored.values()) + rows * c.hidden_size * 4
    if not c.tie_word_embeddings:
        expected -= stored["embed_tokens.weight"]
    cost = costs(loaded, Point(rows, 7, 1))
    assert cost["lower"].weight_bytes + cost["upper"].weight_bytes == expected
    with safe_open(loaded.path / "predictors.safetensors", "np") as file:
        assert cost["predictors"].weight_bytes == file.get_tensor("predictors.weight").nbytes


def once(graph):
    """Nodes of a graph, and of one of the branches that do the same with more or less of a buffer."""
    for node in graph.node:
        yield node
        if node.op_type == "If":
            yield from node.attribute[0].g.node


def test_a_layer_with_a_window_moves_no_more_than_its_window(family_bundle):
    manifest = load_bundle(family_bundle("mistral_window")[1]).manifest
    short, long = (pass_cost(manifest, "lower", Point(1, cached, 1)) for cached in (10, 500))
    assert short.cache_bytes == long.cache_bytes  # a window of 11, its own row included
    assert short.attention_flops == long.attention_flops
    assert pass_cost(manifest, "lower", Point(1, 9, 1)).cache_bytes < short.cache_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_the_graphs(family_bundle, family):
    """Two for each weight and row of every Gemm; four for each query element and key of every
    Attention.
    """
    loaded, point = load_bundle(family_bundle(family)[1]), Point(5, 7, 2)
    for name, cost in costs(loaded, point).items():
        graph = onnx.load(loaded.graph_path(loaded.manifest.graphs[name]), load_external_data=False).graph
        shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        gemms = [node for node in graph.node if node.op_type == "Gemm"]
        if name == "upper":
            gemms.pop()  # of the pseudo rows' guesses, one row in this pass
        linear = sum(2 * point.rows * point.batch * np.prod(shapes[node.input[1]]) for node in gemms)
        attentions = sum(node.op_type == "Attention" for node in once(graph))
        query = point.batch * point.rows * loaded.manifest.model.attention.query_size
        assert cost.linear_flops + cost.head_flops == linear, name
        assert cost.attention_flops == 4 * attentions * query * (point.cached_tokens + point.rows), name
        assert (cost.head_flops > 0) == (name == "upper")


def test_roofline_takes_the_limit_that_binds():
    cost = Cost(10_000, 2_000, 500, 90_000, 4_000, 300)
    at = roofline(cost, 2.0, Peaks(1.0, 1.0, ""))
    assert at.bandwidth_ms == cost.moved_bytes / 1e6
    assert at.arithmetic_ms == cost.flops / 1e6
    assert at.share == max(at.bandwidth_ms, at.arithmetic_ms) / 2.0
    unknown = roofline(cost, 2.0, Peaks(1.0, None, ""))
    assert unknown.arithmetic_share is None
    assert unknown.share == unknown.bandwidth_share


def test_the_bandwidth_of_a_device_is_that_of_a_copy_on_it(monkeypatch):
    monkeypatch.setattr(peaks, "COPY_BYTES", 2**16)
    monkeypatch.setattr(peaks, "SECONDS", 0.0)
    cuda = CudaDouble()
    found = peaks.cuda_copy_peaks(CudaMemory(cuda))
    assert cuda.moved_on_device == (1 + peaks.REPEATS) * 2**16  # the first is not counted
    assert found.bandwidth_gb_per_s > 0
    assert found.gflop_per_s is None


@pytest.mark.parametrize(
    ("form", "bits"), [(ROWS, 8), (BLOCKS8, 9.25), (BLOCKS4, 5.125), (OFFSET_BLOCKS4, 5.4453)]
)
def test_quantized_weights_count_with_what_their_blocks_have(form, bits, family_bundle):
    loaded = load_bundle(family_bundle("llama_untied_biases")[1])
    point = Point(5, 7, 1)
    names = [name for name, shape in weight_shapes(loaded.manifest.model).items() if len(shape) == 2]
    linears = {name.removesuffix(".weight"): LinearFormat(form, False, None, None) for name in names}
    manifest = replace(loaded.manifest, quantization=Quantization("int8", 512, linears, None))
    found, plain = (pass_cost(each, "upper", point) for each in (manifest, loaded.manifest))
    matrices = (plain.linear_flops + plain.head_flops) / (2 * point.rows)
    assert plain.weight_bytes - found.weight_bytes == pytest.approx(matrices * (32 - bits) / 8, abs=20)
