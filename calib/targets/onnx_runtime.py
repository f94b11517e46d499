"""Graphs through polygraphy's OnnxrtRunner, on the CPU or on CUDA.

In: a bundle. Out: milliseconds of a pass, the times of a graph's nodes, and what its layers give.
On the CPU the sessions are those of the runtime: the same options, the same threads. `pass_ms` is
polygraphy's `last_inference_time` of a run whose inputs lie on the device and whose outputs stay
there: the cache in its place, the others in memory of the session.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort

from firp.calib.targets.cost import Peaks
from firp.calib.targets.interface import Feed, Shapes
from firp.calib.targets.layer_outputs import make_session, with_outputs
from firp.calib.targets.layer_times import LayerTime, read_onnxruntime_profile
from firp.calib.targets.peaks import cpu_peaks, cuda_peaks
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeCudaBackend
from firp.runtime.bundle.format import Bundle
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError


class OnnxTarget:
    """A bundle's graphs in ONNX Runtime, in the runtime's own sessions. backend: "cpu" or "cuda".
    Raises FirpError where it has none.
    """

    def __init__(self, bundle: Bundle, backend: str):
        self._backend = OnnxRuntimeBackend() if backend == "cpu" else OnnxRuntimeCudaBackend()
        self._engine = Engine(bundle, self._backend, check_hashes=False)
        self.device = self._backend.device
        self.graphs = bundle.manifest.graphs
        self.limits = None
        if bundle.manifest.precision.compute == "bfloat16":
            raise FirpError(
                "OnnxrtRunner takes numpy arrays, and numpy has no bfloat16",
                got="a bfloat16 bundle",
                expected="float32 or float16",
                fix="export the model with --dtype float16, or profile it with TensorRT",
            )

    def engine(self) -> Engine:
        return self._engine

    def check(self, graph: str, shapes: Shapes) -> None:
        """ONNX Runtime takes all that the declaration allows."""

    def peaks(self) -> Peaks:
        measure = cpu_peaks if self._backend.name == "cpu" else cuda_peaks
        return measure(self._backend.options(), self._engine.manifest.precision.compute)

    @contextmanager
    def timer(self, graph: str) -> Iterator[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""
        from firp.calib.targets.in_place_runner import InPlaceRunner

        with InPlaceRunner(self._session(graph), self.graphs[graph]) as runner:

            def pass_ms(feed: Feed) -> float:
                runner.infer(feed, check_inputs=False)  # `FeedMaker` follows the declaration
                return runner.last_inference_time() * 1e3

            yield pass_ms

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Nodes by ONNX Runtime's own profile. Empty on CUDA, where its times of nodes are those of
        their launches.
        """
        if self._backend.name != "cpu":
            return []
        from firp.calib.targets.in_place_runner import bound_feed

        with tempfile.TemporaryDirectory() as folder:
            options = self._backend.options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / graph)
            path = self._engine.bundle.graph_path(self.graphs[graph])
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            binding = bound_feed(session, self.graphs[graph], feed)
            for _ in range(warm_up + passes):
                session.run_with_iobinding(binding)
            return read_onnxruntime_profile(Path(session.end_profiling()), warm_up)

    def runner(
        self,
        graph: str,
        layer_outputs: tuple[str, ...],
        report: Callable[[float], None],
        cancel: threading.Event,
    ) -> Any:
        """The session of the runtime, or one with the same options."""
        from polygraphy.backend.onnxrt import OnnxrtRunner

        session = self._session(graph)
        if not layer_outputs:
            return OnnxrtRunner(session)
        path = self._engine.bundle.graph_path(self.graphs[graph])
        declared = tuple(tensor.name for tensor in self.graphs[graph].outputs)
        options = self._backend.options()
        provider = session.get_providers()[0]
        return OnnxrtRunner(
            lambda: make_session(with_outputs(path, declared + layer_outputs), path.parent, options, provider)
        )

    def _session(self, graph: str) -> ort.InferenceSession:
        """The runtime's own session of a graph."""
        return self._engine.sessions.graphs[graph].native
