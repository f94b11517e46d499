"""The library's network against the declared graph: what a parser drops, misreads or refuses."""

import dataclasses
import threading

import onnx_ir as ir
import pytest

from firp.export.tensorrt.plan import BuildFor, build_plan
from firp.export.tensorrt.shapes import graph_profiles
from firp.runtime.backends.nvidia_library import load_library
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import PREFIX, TensorSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import FirpError

RTX = "tensorrt-rtx"


def rewrite(bundle, change):
    """The lower graph after `change(graph)`, and the declaration that fits it but for the change."""
    manifest = load_bundle(bundle).manifest
    spec = manifest.graphs_for(PREFIX)["lower"]
    path = bundle / spec.file
    model = ir.load(path)
    change(model.graph)
    ir.save(model, bundle / "changed.onnx")
    profiles = graph_profiles(manifest, "lower", Limits(max_context=64))
    build_for = BuildFor(load_library(RTX), ("8.9",), None)
    return lambda declared=spec: build_plan(
        build_for, bundle / "changed.onnx", declared, profiles, lambda _: None, threading.Event()
    )


def test_an_input_that_the_parser_drops_is_an_error(half_bundle):
    """nonpad_kv_seqlen (the seventh input of Attention): TensorRT's parser says nothing about it."""
    extra = ir.Value(name="seqlen", shape=ir.Shape(["B"]), type=ir.TensorType(ir.DataType.INT64))

    def change(graph):
        graph.inputs.append(extra)
        for node in graph:
            if node.op_type == "Attention":
                node.resize_inputs(7)
                node.replace_input_with(6, extra)

    build = rewrite(half_bundle, change)
    with pytest.raises(FirpError, match="the library reads other inputs of lower . got seqlen INT64"):
        build()
    spec = load_bundle(half_bundle).manifest.graphs_for(PREFIX)["lower"]
    declared = dataclasses.replace(spec, inputs=(*spec.inputs, TensorSpec("seqlen", "int64", ("B",))))
    with pytest.raises(FirpError, match="the library drops inputs of lower . got seqlen"):
        build(declared)


def test_another_type_or_rank_is_an_error(half_bundle):
    spec = load_bundle(half_bundle).manifest.graphs_for(PREFIX)["lower"]
    build = rewrite(half_bundle, lambda _: None)
    for declared in (
        ("input_ids", "float16", ("B", "T")),
        ("input_ids", "int64", ("B", "T", 1)),
        ("ids", "int64", ("B", "T")),
    ):
        with pytest.raises(
            FirpError, match=r"reads other inputs of lower . got input_ids INT64 \[-1, -1\], expected i"
        ):
            build(dataclasses.replace(spec, inputs=(TensorSpec(*declared), *spec.inputs[1:])))
    with pytest.raises(FirpError, match="reads other outputs of lower"):
        build(dataclasses.replace(spec, outputs=spec.outputs[:-1]))
    assert build().nbytes > 0


def test_a_graph_that_the_parser_refuses_is_an_error(half_bundle):
    def change(graph):
        next(node for node in graph if node.op_type == "Sigmoid").op_type = "Unknown"

    with pytest.raises(
        FirpError, match="the library cannot read changed.onnx . got .*Unknown.*Plugin not found"
    ):
        rewrite(half_bundle, change)()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX has no use for a timing cache
@pytest.mark.parametrize("content", [None, b"", b"of another version"])
def test_timings_of_no_use_are_dropped(content, half_bundle, tmp_path):
    manifest = load_bundle(half_bundle).manifest
    spec = manifest.graphs["predictors"]
    timings = tmp_path / "timing.cache"
    if content is not None:
        timings.write_bytes(content)
    build_for = BuildFor(load_library(RTX), ("8.9",), timings)
    profiles = graph_profiles(manifest, "predictors", Limits(max_context=64))
    build_plan(build_for, half_bundle / "predictors.onnx", spec, profiles, lambda _: None, threading.Event())
    assert timings.read_bytes() not in (b"", content)


def test_an_output_that_the_network_does_not_have_is_an_error(half_bundle):
    manifest = load_bundle(half_bundle).manifest
    spec = manifest.graphs_for(PREFIX)["lower"]
    build_for = BuildFor(load_library(RTX), ("8.9",), None)
    profiles = graph_profiles(manifest, "lower", Limits(max_context=64))
    names = ("layers.1.out", "layers.2.out")
    with pytest.raises(FirpError, match="no such tensors . got layers.2.out$"):
        build_plan(
            build_for, half_bundle / spec.file, spec, profiles, lambda _: None, threading.Event(), names
        )
