"""The profile of a bundle on one device.

In: a bundle, a backend, a grid of rows, cached tokens and batch sizes. Out: a `BundleProfile`,
which is profile.json: the time of every pass and of every part of a step, times of layers by kind,
shares of the device's peaks, and the latency table of calibration.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from firp.calib.profiling.pass_grid import PassTime, check_grid, measure_grid, require_grid_memory
from firp.calib.profiling.step_split import StepSplit, split_steps
from firp.calib.targets.cost import Peaks, Point
from firp.calib.targets.feeds import FeedMaker
from firp.calib.targets.interface import Target
from firp.calib.targets.layer_times import KindTime, group, head_nodes
from firp.calib.targets.open import open_target
from firp.runtime.backends.registry import backend_factory
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.errors import FirpError
from firp.runtime.extras import require
from firp.runtime.machine import available_bytes
from firp.runtime.progress import Progress, silent
from firp.runtime.tuning.latency import measure_latency

ROWS = (1, 2, 4, 8, 16, 32, 64)
CACHED = (128, 512, 2048)
LAYER_ROWS = (1, 16)
LAYER_CACHED = 256  # cached tokens, or nearly, of the passes whose layers are timed
LAYER_WARM_UP = 3
LAYER_PASSES = 20
PACKAGES = ("polygraphy", "matplotlib", "onnx")


@dataclass(frozen=True)
class ProfileRequest:
    """Empty tuples take the defaults above, as far as the model's context holds them."""

    bundle: Path
    backend: str = "cpu"
    rows: tuple[int, ...] = ()
    cached_tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    layer_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerProfile:
    """Time of one graph by its own clock, which also counts the clock's cost for each
    layer.
    """

    graph: str
    rows: int
    cached_tokens: int
    layers_ms: float  # of all layers
    pass_ms: float | None  # the same pass without the profile; None where the grid does not have it
    kinds: tuple[KindTime, ...]


@dataclass(frozen=True)
class BundleProfile:
    """The profile of a bundle: profile.json.

    `latency` is what `firp calibrate --latency` reads, measured as `firp tune` does: by the
    runtime, whose graphs take turns and push each other's data out of the processor's caches.
    `passes` are polygraphy's, each graph by itself.
    """

    bundle: str
    backend: str
    device: str
    versions: dict[str, str]
    dtype: str
    peaks: Peaks
    passes: tuple[PassTime, ...]
    steps: tuple[StepSplit, ...]
    layers: tuple[LayerProfile, ...]  # () where the backend cannot tell
    latency: LatencyTable


def profile_bundle(request: ProfileRequest, progress: Progress = silent) -> BundleProfile:
    """Measure everything. Raises FirpError for what the model or this machine cannot do, before
    anything is measured.
    """
    require("profiling", PACKAGES)
    backend_factory(request.backend)  # an unknown name is refused before the bundle is read
    bundle = load_bundle(request.bundle)
    grid, layer_rows = grid_of(request, bundle.manifest.model.max_position_embeddings)
    require_grid_memory(bundle.manifest, grid, available_bytes())
    target = open_target(bundle, request.backend)
    import onnxruntime
    import polygraphy

    cached = min({point.cached_tokens for point in grid}, key=lambda tokens: abs(tokens - LAYER_CACHED))
    check_grid(target, bundle.manifest, [*grid, *(Point(rows, cached, 1) for rows in layer_rows)])
    progress("measuring the device's peaks", 0, 1)
    peaks = target.peaks()
    passes = measure_grid(target, bundle.manifest, grid, peaks, progress)
    progress("decoding", 0, 1)
    engine = target.engine()
    steps = split_steps(engine)
    latency = measure_latency(engine, progress)
    return BundleProfile(
        bundle=str(request.bundle),
        backend=request.backend,
        device=target.device,
        versions={module.__name__: module.__version__ for module in (polygraphy, onnxruntime)},
        dtype=bundle.manifest.precision.compute,
        peaks=peaks,
        passes=passes,
        steps=steps,
        layers=_layer_profiles(target, bundle, passes, layer_rows, cached, progress),
        latency=latency,
    )


def grid_of(request: ProfileRequest, context: int) -> tuple[list[Point], tuple[int, ...]]:
    """The points to measure, and the rows whose layers are. Raises FirpError for numbers that the
    context does not hold.
    """
    given = {
        "rows": request.rows,
        "cached": request.cached_tokens,
        "batch": request.batches,
        "layer-rows": request.layer_rows,
    }
    for name, values in given.items():
        if wrong := [value for value in values if value < 1]:
            raise FirpError(f"bad --{name}", got=wrong[0], expected="at least 1")
    rows = (
        request.rows
        or tuple(count for count in ROWS if count <= context - max(request.cached_tokens, default=1))
        or (1,)
    )
    room = context - max(rows)
    cached = request.cached_tokens or tuple(sorted({max(1, min(tokens, room)) for tokens in CACHED}))
    layer_rows = request.layer_rows or tuple(count for count in LAYER_ROWS if count <= max(rows))
    if max(*rows, *layer_rows) + max(cached) > context:
        raise FirpError(
            "grid beyond the model's context",
            got=f"{max(*rows, *layer_rows)} rows after {max(cached)} cached tokens",
            expected=f"at most {context} together",
            fix="smaller --rows, --layer-rows or --cached",
        )
    return [Point(*sizes) for sizes in product(rows, cached, request.batches)], layer_rows


def _layer_profiles(
    target: Target,
    bundle: Bundle,
    passes: Iterable[PassTime],
    layer_rows: tuple[int, ...],
    cached_tokens: int,
    progress: Progress,
) -> tuple[LayerProfile, ...]:
    unprofiled = {
        (p.graph, p.rows): p.median_ms
        for p in passes
        if p.batch == 1 and p.cached_tokens in (cached_tokens, 0)
    }
    found = []
    head = head_nodes(bundle.graph_path(target.graphs["upper"]))
    for done, (name, spec) in enumerate(target.graphs.items()):
        progress(f"profiling layers of {name}", done, len(target.graphs))
        feeds = FeedMaker(spec, bundle.manifest, 1, cached_tokens)
        for rows in layer_rows:
            layers = target.layer_times(
                name, feeds.feed(Point(rows, cached_tokens, 1)), LAYER_WARM_UP, LAYER_PASSES
            )
            if layers:
                kinds = group(layers, head if name == "upper" else frozenset())
                total = sum(layer.ms for layer in layers)
                found.append(
                    LayerProfile(name, rows, cached_tokens, total, unprofiled.get((name, rows)), kinds)
                )
    progress("profiled layers", len(target.graphs), len(target.graphs))
    return tuple(found)
