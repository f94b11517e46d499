"""A backend's graphs against ONNX Runtime on the CPU, tensor by tensor, to find the first layer
that diverges.

In: a target (polygraphy's runners on one backend) and the bundle. Out: `GraphComparison`s: every
graph as it runs, by its declared outputs, and each half once more with the outputs of its decoder
layers. The reference is the same graph in float32, whatever the bundle's dtype, with none of ONNX
Runtime's optimizations.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from firp.calib.targets.cost import Point
from firp.calib.targets.feeds import FeedMaker
from firp.calib.targets.interface import Target
from firp.calib.targets.layer_outputs import (
    layer_of,
    layer_outputs,
    make_session,
    tensors_in_order,
    with_outputs,
)
from firp.export.verify.report import Check
from firp.export.verify.rounding import scaled_difference, value_limit
from firp.export.verify.widened import in_float32
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from firp.runtime.bundle.dtypes import DTYPES, to_storage
from firp.runtime.bundle.format import Bundle, Manifest
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import FirpError
from firp.runtime.progress import Progress, silent

ROWS = (1, 16)  # as far as the context and the engines hold them
CACHED_TOKENS = 64  # likewise
AS_IT_RUNS, WITH_LAYERS = "as it runs", "with layer outputs"


@dataclass(frozen=True)
class GraphComparison:
    graph: str
    form: str  # AS_IT_RUNS, or WITH_LAYERS: made for the comparison, and fused as that allows
    tensors: int  # compared, each over all feeds
    worst: float  # the largest `firp.export.verify.rounding.scaled_difference`; NaN where a tensor has one
    limit: float
    first_beyond: str | None  # name of the first tensor beyond the limit, in the order of the graph
    layer: int | None  # that makes this tensor; None where no layer does

    def check(self) -> Check:
        name = f"{self.graph} {self.form}" + (
            f", first beyond: {self.first_beyond}" if self.first_beyond else ""
        )
        return Check(name, self.first_beyond is None, self.worst, self.limit)


class Difference(NamedTuple):
    """The difference of one tensor in one pass; true, as polygraphy asks, when it is within the
    limit.
    """

    value: float
    limit: float

    def __bool__(self) -> bool:
        return self.value <= self.limit  # not when NaN


def compare_graphs(
    target: Target,
    bundle: Bundle,
    progress: Progress = silent,
    cancel: threading.Event | None = None,
) -> Iterator[GraphComparison]:
    """Raises FirpError when a graph cannot be run, or when `cancel` is set."""
    manifest, cancel = bundle.manifest, cancel or threading.Event()
    points = comparison_points(manifest.model.max_position_embeddings, target.limits)
    for name, spec in target.graphs.items():
        path, feeds = bundle.graph_path(spec), _feeds(spec, manifest, points)
        for form in (AS_IT_RUNS, WITH_LAYERS) if manifest.layers(name) else (AS_IT_RUNS,):
            if cancel.is_set():
                raise FirpError("interrupted", got=f"the comparison of {name} was cancelled")
            stage = f"comparing {name} {form}"

            def report(share: float, stage: str = stage) -> None:
                progress(stage, int(share * 100), 100)

            report(0.0)
            names = layer_outputs(path, manifest.layers(name)) if form == WITH_LAYERS else ()
            ours = target.runner(name, names, report, cancel)
            theirs = reference_runner(path, (*(tensor.name for tensor in spec.outputs), *names))
            yield compare_runners(
                name, form, ours, theirs, feeds, tensors_in_order(path), value_limit(manifest)
            )


def comparison_points(context: int, limits: Limits | None) -> list[Point]:
    rows = max(1, min(ROWS[1], context // 2, limits.max_rows if limits else ROWS[1]))
    cached = min(CACHED_TOKENS, context - rows, limits.max_context if limits else CACHED_TOKENS)
    return [Point(count, cached, 1) for count in sorted({ROWS[0], rows})]


def _feeds(spec: GraphSpec, manifest: Manifest, points: list[Point]) -> list[dict[str, Any]]:
    """Inputs in the bundle's dtype; bfloat16, which numpy does not have, as torch tensors.
    Polygraphy casts them for the reference.
    """
    maker = FeedMaker(spec, manifest, 1, points[0].cached_tokens)
    feeds = [maker.feed(point) for point in points]
    if manifest.precision.compute != "bfloat16":
        return feeds
    import torch

    def cut(array: np.ndarray) -> torch.Tensor:
        """Towards zero, as the runtime does: the mask's lowest value must not become infinite."""
        bits = to_storage(array, DTYPES["bfloat16"].storage)
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)

    half = {tensor.name for tensor in spec.inputs if tensor.dtype == "bfloat16"}
    return [{name: cut(array) if name in half else array for name, array in feed.items()} for feed in feeds]


def reference_runner(path: Path, outputs: tuple[str, ...]) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    options = OnnxRuntimeBackend().options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return OnnxrtRunner(
        lambda: make_session(
            ir.to_proto(in_float32(ir.from_proto(with_outputs(path, outputs)))),
            path.parent,
            options,
            "CPUExecutionProvider",
        )
    )


def compare_runners(
    graph: str, form: str, ours: Any, theirs: Any, feeds: list[dict[str, Any]], order: list[str], limit: float
) -> GraphComparison:
    """Run two of polygraphy's runners over the same feeds. order: of the tensors in the graph.
    Raises FirpError when one cannot run.
    """
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    def compare(our_outputs: Mapping[str, Any], their_outputs: Mapping[str, Any]) -> dict[str, Difference]:
        return {name: Difference(difference(name, our_outputs, their_outputs), limit) for name in our_outputs}

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results = Comparator.run([ours, theirs], data_loader=feeds)
        except PolygraphyException as error:
            raise FirpError(
                f"polygraphy cannot run {graph} {form}", got=" ".join(str(error).split())[:500]
            ) from error
        (passes,) = Comparator.compare_accuracy(results, compare_func=compare)[0].values()
    worst = {name: float(np.max([differences[name].value for differences in passes])) for name in passes[0]}
    beyond = next(
        (name for name in sorted(worst, key=order.index) if not Difference(worst[name], limit)), None
    )
    layer = layer_of(beyond) if beyond else None
    return GraphComparison(graph, form, len(worst), float(np.max(list(worst.values()))), limit, beyond, layer)


def difference(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The scaled difference of one tensor. Tokens are compared by their logits in the reference,
    for rounding may swap two that are close.
    """
    a, b = _array(ours[name]), _array(theirs[name])
    if a.shape != b.shape:
        return math.inf
    if name == "draft_ids":
        known = b[..., None] == a[..., None, :]  # places of theirs, of ours
        logprobs = _array(theirs["draft_logprobs"])
        a = np.where(known, logprobs[..., None], -np.inf).max(-2)
        # what is not on their list is less likely than its last
        a, b = np.where(known.any(-2), a, logprobs[..., -1:]), logprobs
    if name == "top_ids":
        logits = _array(theirs["logits"])
        if a.min() < 0 or a.max() >= logits.shape[-1]:
            return math.inf
        a, b = (np.take_along_axis(logits, ids, axis=-1) for ids in (a, b))
    return scaled_difference(a, b)


def _array(values: Any) -> np.ndarray:
    """A numpy array of what a runner gives, which is a torch tensor where the feeds have some."""
    if isinstance(values, np.ndarray):
        return values
    return (values.float() if values.is_floating_point() else values).numpy()
