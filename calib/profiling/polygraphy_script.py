"""Polygraphy's own command lines for the graphs of a bundle, to go on with the tool itself.

In: a bundle and the points that were measured. Out: a shell script. Tests run its CPU lines.
"""

import shlex
from pathlib import Path

from firp.calib.targets.cost import Point, dimensions
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import PREFIX, GraphSpec

WARM_UP, ITERATIONS = 5, 50
_RTX = "POLYGRAPHY_USE_TENSORRT_RTX=1 "


def polygraphy_script(bundle: Path, manifest: Manifest, point: Point, largest: Point) -> str:
    """A script of the command lines. point: whose pass is run; largest: what TensorRT's plans are
    to hold.
    """
    # of the two forms of a graph the one whose inputs may hold any values
    graphs = manifest.graphs_for(PREFIX).values()
    lines = [
        "#!/bin/sh",
        "# The graphs of a firp bundle in polygraphy, for one point: "
        f"rows {point.rows}, cached tokens {point.cached_tokens}, batch {point.batch}",
        f"cd {shlex.quote(str(bundle.resolve()))} || exit 1",
        "",
        "# What the graphs are made of",
        *(f"polygraphy inspect model {spec.file} --show layers" for spec in graphs),
        "",
        "# Latency with ONNX Runtime: the average that is logged at the end",
        *(onnxruntime_line(spec, manifest, point) for spec in graphs),
        "",
        "# Engines of TensorRT-RTX: built with or without a GPU, run with one",
        "plans=$(mktemp -d) && trap 'rm -rf \"$plans\"' EXIT",
        *(line for spec in graphs for line in tensorrt_lines(spec, manifest, point, largest)),
    ]
    return "\n".join(lines) + "\n"


def onnxruntime_line(spec: GraphSpec, manifest: Manifest, point: Point) -> str:
    return _line(
        f"polygraphy run {spec.file} --onnxrt {_timed()}",
        _shapes(spec, manifest, point),
        _ranges(spec, manifest, point),
    )


def tensorrt_lines(spec: GraphSpec, manifest: Manifest, point: Point, largest: Point) -> tuple[str, str]:
    smallest = Point(1, 0, 1)
    # TensorRT has no fused attention in float32: it may take attention apart there
    flags = "--decomposable-attentions " if manifest.precision.compute == "float32" else ""
    plan = f'"$plans"/{spec.name}.plan'
    build = f"{_RTX}polygraphy convert {spec.file} --convert-to trt {flags}-o {plan}"
    limits = ("min", smallest), ("opt", point), ("max", largest)
    ranges = [
        f"--trt-{name}-shapes {_values(_named_shapes(spec, manifest, limit))}" for name, limit in limits
    ]
    run = f"{_RTX}polygraphy run {plan} --model-type engine --trt {_timed()}"
    return _line(build, *ranges), _line(run, _shapes(spec, manifest, point), _ranges(spec, manifest, point))


def _timed() -> str:
    return f"--sequential-runners --warm-up {WARM_UP} --iterations {ITERATIONS}"


def _line(command: str, *options: str) -> str:
    return " \\\n    ".join([command, *options])


def _named_shapes(spec: GraphSpec, manifest: Manifest, point: Point) -> dict[str, list[int]]:
    dims = dimensions(spec.name, point, manifest)
    return {tensor.name: list(tensor.sizes(dims)) for tensor in spec.inputs}


def _shapes(spec: GraphSpec, manifest: Manifest, point: Point) -> str:
    return f"--input-shapes {_values(_named_shapes(spec, manifest, point))}"


def _ranges(spec: GraphSpec, manifest: Manifest, point: Point) -> str:
    """Values that the graph can take: polygraphy draws them at random, and a row that does not
    exist ends the run.
    """
    highest = {
        "input_ids": manifest.model.vocab_size - 1,
        "position_ids": point.cached_tokens,
        "attention_bias": 0,
        "attention_bias_window": 0,
    }
    rows = dict.fromkeys(("logits_rows", "draft_rows", "source_rows"), point.rows - 1)
    ranges = {
        tensor.name: [0, (highest | rows)[tensor.name]]
        for tensor in spec.inputs
        if tensor.name in highest | rows
    }
    return f"--val-range '[-1,1]' {_values(ranges)}"


def _values(named: dict[str, list[int]]) -> str:
    return " ".join(shlex.quote(f"{name}:[{','.join(map(str, values))}]") for name, values in named.items())
