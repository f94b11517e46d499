"""Graphs through polygraphy's TrtRunner, on TensorRT or TensorRT-RTX.

In: a bundle with engines for this library and GPU. Out: milliseconds of a pass, the times of an
engine's layers, and what they give. Inputs of a timed pass lie on the device before it, outputs
stay there; binding, launch and the wait for it are counted.
"""

import os
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from firp.calib.targets.cost import Peaks
from firp.calib.targets.interface import Feed, Shapes
from firp.calib.targets.layer_times import LayerTime
from firp.calib.targets.peaks import cuda_copy_peaks
from firp.export.tensorrt.build import graph_weight_bytes, require_build_memory
from firp.export.tensorrt.plan import BuildFor, build_plan
from firp.runtime.backends.tensor_rt import TensorRTBackend, new_context
from firp.runtime.bundle.dtypes import DTYPES, to_storage
from firp.runtime.bundle.engine_record import find_engine_folder, fitting_profile
from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graph_spec import PREFIX, GraphSpec
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.machine import available_bytes


class TensorRTTarget:
    """A bundle's plans in TensorRT. Raises FirpError without the library, without a GPU, or without
    plans for both.
    """

    def __init__(self, bundle: Bundle, backend: str):
        if backend == "tensorrt-rtx":
            # read when polygraphy is imported, which happens below
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
        self._runtime = TensorRTBackend(backend)
        self._trt = self._runtime.library
        self.device = self._runtime.device
        self.graphs = bundle.manifest.graphs_for(PREFIX)
        self._bundle = bundle
        self._backend = backend
        self._engines = find_engine_folder(
            bundle, backend, self._trt.__version__, self._runtime.compute_capability
        )
        self.limits = self._engines.record.limits
        _check_cuda_library()
        from polygraphy import config

        if (backend == "tensorrt-rtx") != config.USE_TENSORRT_RTX:
            loaded = "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"
            raise FirpError(
                "polygraphy is set for another TensorRT",
                got=loaded,
                expected=backend,
                fix="unset POLYGRAPHY_USE_TENSORRT_RTX, and profile one backend in a process",
            )

    def engine(self) -> Engine:
        return Engine.load(self._bundle.path, self._backend, check_hashes=False)

    def check(self, graph: str, shapes: Shapes) -> None:
        fitting_profile(graph, self._engines.record.profiles[graph], shapes)

    def peaks(self) -> Peaks:
        return cuda_copy_peaks(self._runtime.memory())

    @contextmanager
    def timer(self, graph: str) -> Iterator[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""
        with self._passes(graph, None) as run:
            yield run

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Layers by TensorRT's own profiler."""
        profiler = layer_profiler(self._trt)
        with self._passes(graph, profiler) as run:
            for _ in range(warm_up):
                run(feed)
            profiler.times.clear()
            for _ in range(passes):
                run(feed)
        return [LayerTime(name, "", statistics.median(times)) for name, times in profiler.times.items()]

    def runner(
        self,
        graph: str,
        layer_outputs: tuple[str, ...],
        report: Callable[[float], None],
        cancel: threading.Event,
    ) -> Any:
        """The plan in its decode profile; with layer outputs, a plan built for them, for this GPU
        and the same profiles.
        """
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        plan = BytesFromPath(str(self._engines.plan_path(graph)))
        if layer_outputs:
            manifest = self._bundle.manifest
            path = self._bundle.graph_path(self.graphs[graph])
            require_build_memory(manifest, {graph: graph_weight_bytes(path)}, available_bytes())
            here = BuildFor(self._trt, (self._runtime.compute_capability,), None)
            profiles = self._engines.record.profiles[graph]
            plan = build_plan(here, path, self.graphs[graph], profiles, report, cancel, layer_outputs)
        return TrtRunner(EngineFromBytes(plan), optimization_profile=0)

    @contextmanager
    def _passes(self, graph: str, profiler: Any) -> Iterator[Callable[[Feed], float]]:
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = EngineFromBytes(BytesFromPath(str(self._engines.plan_path(graph))))()
        own_memory = self._trt.ExecutionContextAllocationStrategy.STATIC
        # as those that the runtime captures
        context = new_context(self._trt, engine, own_memory, compiled=True)
        if profiler:
            context.profiler = profiler
        profiles = self._engines.record.profiles[graph]
        on_device = _DeviceFeed(self.graphs[graph])
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


class _DeviceFeed:
    """The arrays of the last feed on the device; an array that is the same as before is not copied
    again.
    """

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
                stored = np.ascontiguousarray(to_storage(array, DTYPES[self._dtypes[name]].storage))
                buffer = cuda.DeviceArray.raw((stored.nbytes,))
                buffer.copy_from(stored.reshape(-1).view(np.uint8))
                self._held[name] = array, buffer
            views[name] = cuda.DeviceView(
                self._held[name][1].ptr, array.shape, getattr(DataType, self._dtypes[name].upper())
            )
        return views


def _check_cuda_library() -> None:
    """Raises FirpError when polygraphy, which looks for CUDA's shared library itself, does not find
    it.
    """
    from polygraphy import cuda
    from polygraphy.exception import PolygraphyException

    try:
        cuda.wrapper()
    except (PolygraphyException, OSError) as error:
        got = str(error).splitlines()[0]
        fix = "pip install nvidia-cuda-runtime, or add its folder to LD_LIBRARY_PATH"
        raise FirpError(
            "polygraphy does not find CUDA's runtime library", got=got, expected="libcudart.so", fix=fix
        ) from error


def layer_profiler(trt: Any) -> Any:
    """An IProfiler whose `times` holds what each layer took, pass by pass."""

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name].append(ms)

    return Profiler()
