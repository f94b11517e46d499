"""Graphs through polygraphy's TrtRunner, on TensorRT or TensorRT-RTX.

In: a bundle with engines for this library and GPU. Out: milliseconds of a pass, and the times of an engine's layers. Inputs lie on
the device before a pass is timed and outputs stay there; binding, launch and the wait for the device are counted.
"""

import importlib
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from firp.calib.cost import Peaks
from firp.calib.layer_times import LayerTime
from firp.calib.pass_grid import Feed, Shapes
from firp.calib.peaks import cuda_copy_peaks
from firp.runtime.bundle import Bundle
from firp.runtime.engine import BACKENDS, Engine
from firp.runtime.engine_plans import Profile, find_engines
from firp.runtime.errors import FirpError
from firp.runtime.graph_spec import GraphSpec

MODULES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13")}  # module, package


class TensorRtTarget:
    """Raises FirpError without the library, without a GPU, or without engines for both."""

    def __init__(self, bundle: Bundle, backend: str):
        if backend == "tensorrt-rtx":
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when polygraphy is imported, which happens below
        module, package = MODULES[backend]
        try:
            self._trt = importlib.import_module(module)
        except ImportError as error:
            got = str(error).splitlines()[0]
            raise FirpError(f"{backend} is not installed", got=got, expected=module, fix=f"pip install {package}") from error
        name, capability = _gpu()
        self.device = f"{name}, {backend} {self._trt.__version__}"
        self._bundle, self._backend = bundle, backend
        self._engines = find_engines(bundle, backend, self._trt.__version__, capability)
        from polygraphy import config

        if (backend == "tensorrt-rtx") != config.USE_TENSORRT_RTX:
            loaded = "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"
            raise FirpError(
                "polygraphy is set for another TensorRT", got=loaded, expected=backend,
                fix="unset POLYGRAPHY_USE_TENSORRT_RTX, and profile one backend in a process",
            )  # fmt: skip

    def engine(self) -> Engine | None:
        if self._backend not in BACKENDS:
            return None
        return Engine.load(self._bundle.path, self._backend, check_hashes=False)

    def check(self, graph: str, shapes: Shapes) -> None:
        fitting_profile(graph, self._engines.record.profiles[graph], shapes)

    def peaks(self) -> Peaks:
        return cuda_copy_peaks()

    @contextmanager
    def timer(self, graph: str) -> Iterator[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""
        with self._runner(graph, None) as run:
            yield run

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Layers by TensorRT's own profiler."""
        profiler = layer_profiler(self._trt)
        with self._runner(graph, profiler) as run:
            for _ in range(warm_up):
                run(feed)
            profiler.times.clear()
            for _ in range(passes):
                run(feed)
        return [LayerTime(name, "", statistics.median(each)) for name, each in profiler.times.items()]

    @contextmanager
    def _runner(self, graph: str, profiler: Any) -> Iterator[Callable[[Feed], float]]:
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = EngineFromBytes(BytesFromPath(str(self._engines.plan_path(graph))))()
        context = engine.create_execution_context()
        if profiler:
            context.profiler = profiler
        profiles, on_device = self._engines.record.profiles[graph], _DeviceFeed(self._bundle.manifest.graphs[graph])
        with TrtRunner(context, optimization_profile=0) as runner, on_device:
            chosen = 0

            def pass_ms(feed: Feed) -> float:
                nonlocal chosen
                index = fitting_profile(graph, profiles, {name: array.shape for name, array in feed.items()})
                if index != chosen:
                    runner.set_profile(index)
                    chosen = index
                runner.infer(on_device.copy(feed), check_inputs=False, copy_outputs_to_host=False)
                return runner.last_inference_time() * 1e3

            yield pass_ms


def fitting_profile(graph: str, profiles: tuple[Profile, ...], shapes: Shapes) -> int:
    """The first optimization profile that holds these shapes. Raises FirpError when none does."""
    for index, profile in enumerate(profiles):
        ranges = ((shapes[name], low, high) for name, (low, _, high) in profile.shapes.items())
        if all(a <= size <= b for shape, low, high in ranges for size, a, b in zip(shape, low, high, strict=True)):
            return index
    largest = {name: high for name, (_, _, high) in profiles[-1].shapes.items()}
    wrong = next((name for name, high in largest.items() if any(a > b for a, b in zip(shapes[name], high, strict=True))), "")
    raise FirpError(
        f"the {graph} engine does not hold such a pass", got=f"{wrong} {shapes[wrong]}" if wrong else "a smaller shape",
        expected=f"at most {largest[wrong]}" if wrong else "the shapes of one profile",
        fix="smaller --rows, --cached or --batch, or build larger engines",
    )  # fmt: skip


class _DeviceFeed:
    """The arrays of the last feed on the device; an array that is the same as before is not copied again."""

    def __init__(self, spec: GraphSpec):
        self._dtypes = {tensor.name: tensor.dtype for tensor in spec.inputs}
        self._held: dict[str, tuple[np.ndarray, Any]] = {}

    def __enter__(self) -> "_DeviceFeed":
        return self

    def __exit__(self, *_: object) -> None:
        for _array, buffer in self._held.values():
            buffer.free()

    def copy(self, feed: Feed) -> dict[str, Any]:
        from polygraphy import cuda
        from polygraphy.datatype import DataType

        views = {}
        for name, array in feed.items():
            held = self._held.get(name)
            if held is None or held[0] is not array:
                if held:
                    held[1].free()
                stored = as_stored(array, self._dtypes[name])
                buffer = cuda.DeviceArray.raw((stored.nbytes,))
                buffer.copy_from(stored.reshape(-1).view(np.uint8))
                self._held[name] = array, buffer
            views[name] = cuda.DeviceView(self._held[name][1].ptr, array.shape, getattr(DataType, self._dtypes[name].upper()))
        return views


def as_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of an input on the device: bfloat16 is the upper half of a float32, and numpy has no name for it."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array).view(np.uint16)[..., 1::2].copy()


def layer_profiler(trt: Any) -> Any:
    """An IProfiler whose `times` holds what each layer took, pass by pass."""

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name].append(ms)

    return Profiler()


def _gpu() -> tuple[str, str]:
    """Name and compute capability of the first GPU."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise FirpError("no CUDA bindings", got=str(error), fix="pip install cuda-bindings") from error
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess or not count:
        raise FirpError(
            "no GPU to profile on", got=status.name if count is None else f"{count} devices",
            expected="an NVIDIA GPU and its driver",
            fix="run it where the GPU is, or profile with --backend cpu",
        )  # fmt: skip
    _, properties = runtime.cudaGetDeviceProperties(0)
    return properties.name.decode(), f"{properties.major}.{properties.minor}"
