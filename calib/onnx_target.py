"""Graphs through polygraphy's OnnxrtRunner, on the CPU or on CUDA.

In: a bundle. Out: milliseconds of a pass, and the times of a graph's nodes. On the CPU the sessions are those of the runtime: the
same options, the same threads. `pass_ms` is polygraphy's `last_inference_time`: the run and the outputs it allocates, without
polygraphy's checks of the inputs, which would double a pass of a small model. On CUDA the copies of inputs and outputs are in it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort

from firp.calib.cost import Peaks
from firp.calib.layer_times import LayerTime, read_onnxruntime_profile
from firp.calib.pass_grid import Feed, Shapes
from firp.calib.peaks import cpu_peaks, cuda_peaks
from firp.runtime.bundle import Bundle
from firp.runtime.engine import BACKENDS, Engine
from firp.runtime.errors import FirpError
from firp.runtime.onnxruntime_backend import OnnxRuntimeBackend

CUDA = "CUDAExecutionProvider"


class OnnxTarget:
    """backend: "cpu", whose sessions are the runtime's own, or "cuda"."""

    def __init__(self, bundle: Bundle, backend: str):
        self._bundle, self._backend = bundle, backend
        self._options = OnnxRuntimeBackend().options
        self._on_cpu = Engine.load(bundle.path, check_hashes=False) if backend == "cpu" else None
        self.device = self._on_cpu.backend.device if self._on_cpu else "CUDA device 0, ONNX Runtime"
        if backend == "cuda" and CUDA not in ort.get_available_providers():
            raise FirpError(
                "ONNX Runtime has no CUDA provider", got=", ".join(ort.get_available_providers()), expected=CUDA,
                fix="install onnxruntime-gpu in place of onnxruntime, or profile with --backend cpu",
            )  # fmt: skip
        if bundle.manifest.dtype == "bfloat16":
            raise FirpError(
                "OnnxrtRunner takes numpy arrays, and numpy has no bfloat16", got="a bfloat16 bundle",
                expected="float32 or float16",
                fix="export the model with --dtype float16, or profile it with TensorRT",
            )  # fmt: skip

    def engine(self) -> Engine | None:
        if self._on_cpu or self._backend not in BACKENDS:
            return self._on_cpu
        return Engine.load(self._bundle.path, self._backend, check_hashes=False)

    def check(self, graph: str, shapes: Shapes) -> None:
        """ONNX Runtime takes all that the declaration allows."""

    def peaks(self) -> Peaks:
        return (cpu_peaks if self._on_cpu else cuda_peaks)(self._options, self._bundle.manifest.dtype)

    @contextmanager
    def timer(self, graph: str) -> Iterator[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""
        from polygraphy.backend.onnxrt import OnnxrtRunner

        session = self._on_cpu.graphs[graph].session if self._on_cpu else self._cuda_session(graph)
        with OnnxrtRunner(session) as runner:

            def pass_ms(feed: Feed) -> float:
                runner.infer(feed, check_inputs=False)  # `FeedMaker` follows the declaration
                return runner.last_inference_time() * 1e3

            yield pass_ms

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Nodes by ONNX Runtime's own profile. Empty on CUDA, where its times of nodes are those of their launches."""
        if self._on_cpu is None:
            return []
        with tempfile.TemporaryDirectory() as folder:
            backend = OnnxRuntimeBackend()
            backend.options.enable_profiling = True
            backend.options.profile_file_prefix = str(Path(folder) / graph)
            session = backend.load(self._bundle.graph_path(graph), self._bundle.manifest.graphs[graph]).session
            for _ in range(warm_up + passes):
                session.run(None, feed)
            return read_onnxruntime_profile(Path(session.end_profiling()), warm_up)

    def _cuda_session(self, graph: str) -> ort.InferenceSession:
        session = ort.InferenceSession(self._bundle.graph_path(graph), self._options, providers=[CUDA, "CPUExecutionProvider"])
        if CUDA not in session.get_providers():  # a missing CUDA library is a warning in ONNX Runtime
            raise FirpError(
                "ONNX Runtime fell back to the CPU", got=", ".join(session.get_providers()), expected=CUDA,
                fix="install the CUDA libraries that onnxruntime-gpu was built for",
            )  # fmt: skip
        return session
