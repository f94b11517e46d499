"""ONNX Runtime, on the CPU and on CUDA: one session a graph for prefill, decode and verify, bound
to the caller's own arrays.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from firp.runtime.arguments import checked, whole
from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.backends.cuda_runtime import device_name, load_cuda, new_stream
from firp.runtime.backends.host import HostMemory
from firp.runtime.backends.huge_pages import private_memory, use_huge_pages
from firp.runtime.backends.interface import Array, Binding, LoadedGraphs, Memory
from firp.runtime.bundle.dtypes import DTYPES, MODEL_DTYPES
from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from firp.runtime.bundle.precision import refuse_quantized
from firp.runtime.errors import BundleError, FirpError, foreign_errors, reason
from firp.runtime.machine import cores, processor, sums_int8_exactly

MOST_THREADS = 1024  # more take ONNX Runtime minutes to start
SPIN_US = "20"  # microseconds
_CUDA = "CUDAExecutionProvider"
# of shapes: ONNX Runtime computes them on the CPU on purpose, from shapes that it knows there
_ON_HOST = {"Shape", "Concat", "Equal"}


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU. threads: of each graph's pool; None takes one for each core."""

    name = "cpu"

    def __init__(self, threads: int | None = None):
        """Raises FirpError for a number of threads that no machine has."""
        threads = checked("number of threads", threads, whole(1, MOST_THREADS).or_none())
        self.device = f"{processor()}, {threads or cores()} threads"
        self._threads = threads or 0

    def options(self) -> ort.SessionOptions:
        """New settings, those that the graphs run with; the caller may change them."""
        options = _session_options()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Three graphs take turns, each with threads of its own: these wait actively for the next piece
        # of work while their graph runs, for there are hundreds of them, and stop with it. Not for long:
        # where other programs want the cores, waiting takes them from the thread that is waited for.
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not sums_int8_exactly():  # then integers are multiplied by slower, exact kernels
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        if not DTYPES[bundle.manifest.precision.compute].has_cpu_kernels:
            raise FirpError(
                f"ONNX Runtime has no CPU kernels for {bundle.manifest.precision.compute}",
                got=f"'{bundle.path}'",
                expected=" or ".join(name for name in MODEL_DTYPES if DTYPES[name].has_cpu_kernels),
                fix="export the model with --dtype float32",
            )
        before = private_memory()
        loaded = _load(ort, bundle, self.options(), ["CPUExecutionProvider"], "cpu", None)
        use_huge_pages(before)
        return loaded

    def memory(self) -> HostMemory:
        return HostMemory()


class OnnxRuntimeCudaBackend:
    """CUDA or nothing: values that would be computed on the CPU are an error. All sessions share
    the provider's stream.
    """

    name = "cuda"

    def __init__(self, library: ModuleType = ort, cuda: ModuleType | None = None):
        self.library = library
        if _CUDA not in library.get_available_providers():
            raise FirpError(
                "this ONNX Runtime has no CUDA",
                got=", ".join(library.get_available_providers()),
                expected=_CUDA,
                fix="make an environment with firp[gpu]; it cannot share one with firp[cpu]",
            )
        self.cuda = cuda or load_cuda("gpu")
        self.device = f"{device_name(self.cuda)}, onnxruntime {library.__version__}"
        self.stream = new_stream(self.cuda)
        self.run_options = ort.RunOptions()
        # `Memory.read` waits
        self.run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def options(self) -> ort.SessionOptions:
        """New settings, those that the graphs run with; the caller may change them."""
        options = _session_options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        refuse_quantized(bundle.manifest.quantization, "ONNX Runtime on CUDA")
        exact = {"use_tf32": "0"}  # which would cut float32 to 10 bits of mantissa
        providers = [(_CUDA, {"user_compute_stream": str(int(self.stream)), **exact})]
        return _load(self.library, bundle, self.options(), providers, "cuda", self.run_options)

    def memory(self) -> CudaMemory:
        return CudaMemory(self.cuda, self.stream)


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # weights in blocks are multiplied with activations in int8, not in float32
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return options


def _load(
    library: ModuleType, bundle: Bundle, options: Any, providers: list, device: str, run_options: Any
) -> LoadedGraphs:
    graphs = {}
    for name, spec in bundle.manifest.graphs.items():
        path = bundle.graph_path(spec)
        with foreign_errors(functools.partial(_does_not_load, path, device)):
            session = library.InferenceSession(path, options, providers=providers)
        if device == "cuda":
            _check_on_cuda(session, path)
        _check_signature(session, spec, path)
        graphs[name] = OnnxRuntimeGraph(session, spec, device, run_options)
    return LoadedGraphs(graphs, None)


def _does_not_load(path: Path, device: str, reason: str) -> BundleError:
    fix = "export the model again" if device == "cpu" else "see whether it loads with --backend cpu"
    return BundleError("graph does not load", got=f"'{path}': {reason}", fix=fix)


def _check_on_cuda(session: Any, path: Path) -> None:
    """Raises FirpError when ONNX Runtime gave up CUDA, which it does in silence: for all of a
    graph, or for some nodes.
    """
    if session.get_providers()[0] != _CUDA:  # a CUDA library is missing
        raise FirpError(
            "ONNX Runtime fell back to the CPU", got=session.get_providers(), fix="install CUDA and cuDNN"
        )
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != _CUDA]
    if strays := Counter(
        node.op_type for part in parts for node in part.get_nodes() if node.op_type not in _ON_HOST
    ):
        raise FirpError(
            f"ONNX Runtime would run parts of '{path.name}' on the CPU",
            got=", ".join(f"{count} {op}" for op, count in strays.items()),
            expected="CUDA kernels for all",
            fix="upgrade onnxruntime-gpu, or use TensorRT",
        )


def _check_signature(session: Any, spec: GraphSpec, path: Path) -> None:
    for kind, declared, actual in (
        ("input", spec.inputs, session.get_inputs()),
        ("output", spec.outputs, session.get_outputs()),
    ):
        wanted = {item.name: (DTYPES[item.dtype].onnx_runtime, _sizes(item.shape)) for item in declared}
        found = {item.name: (item.type, _known(item.shape, wanted.get(item.name))) for item in actual}
        if found != wanted:
            wrong = sorted(set(found.items()) ^ set(wanted.items()))
            raise BundleError(
                f"'{path}' is not the graph its bundle declares",
                got=f"{kind}s that differ: {wrong[:2]}",
                fix="export again",
            )


def _sizes(shape: Sequence[Any]) -> tuple[int | None, ...]:
    """A shape, None where a size is dynamic."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def _known(shape: Sequence[Any], wanted: tuple[str, tuple] | None) -> tuple[int | None, ...]:
    """A session's shape; a size that it, or the declaration, leaves open is taken as declared."""
    sizes = _sizes(shape)
    if wanted is None or len(wanted[1]) != len(sizes):
        return sizes
    pairs = zip(sizes, wanted[1], strict=True)
    return tuple(size if None not in (size, other) else other for size, other in pairs)


class OnnxRuntimeGraph:
    """One graph as an ONNX Runtime session."""

    def __init__(self, session: Any, spec: GraphSpec, device: str, run_options: Any):
        self.native = session
        self.spec = spec
        self.device = device
        self.run_options = run_options

    def runner(self, memory: Memory) -> "OnnxRuntimeRunner":
        return OnnxRuntimeRunner(self)


class _Place(NamedTuple):
    """Where the array of a tensor lies."""

    name: str
    output: bool
    device: str
    shape: tuple[int, ...]
    address: int


class OnnxRuntimeRunner:
    """One binding, kept; an array whose address and shape are those of the last run costs no
    rebinding.
    """

    def __init__(self, graph: OnnxRuntimeGraph):
        self._graph = graph
        self._spec = graph.spec
        self._binding = graph.native.io_binding()
        self._types = {
            tensor.name: _element_type(tensor) for tensor in (*self._spec.inputs, *self._spec.outputs)
        }
        self._bound: dict[str, _Place] = {}
        self._known: dict[str, tuple[Array, _Place]] = {}  # the last array of each tensor
        self._last: Binding | None = None  # what is bound now

    def run(self, binding: Binding) -> None:
        if binding.prepared is None:
            binding.prepared = [
                *self._places(self._spec.inputs, binding.inputs, output=False),
                *self._places(self._spec.outputs, binding.outputs, output=True),
            ]
        if binding is not self._last:
            self._bind(binding.prepared)
            self._last = binding
        try:
            self._graph.native.run_with_iobinding(self._binding, self._graph.run_options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            fix = "export the model again, or lower what the request needs"
            raise FirpError(
                f"the {self._spec.name} graph does not run", got=reason(error), fix=fix
            ) from error

    def _bind(self, places: Sequence[_Place]) -> None:
        """Bind what is not where it was."""
        bound = self._bound
        for place in places:
            name = place.name
            if bound.get(name) is not place and bound.get(name) != place:
                bind = self._binding.bind_output if place.output else self._binding.bind_input
                bind(name, place.device, 0, self._types[name], list(place.shape), place.address)
            bound[name] = place

    def _places(
        self, tensors: tuple[TensorSpec, ...], arrays: Mapping[str, Array], output: bool
    ) -> Iterator[_Place]:
        for tensor in tensors:
            array = arrays[tensor.name]
            known = self._known.get(tensor.name)
            if known and known[0] is array:
                yield known[1]
                continue
            if array.dtype != DTYPES[tensor.dtype].storage:
                raise ValueError(f"{tensor.name}: got {array.dtype} array, expected {tensor.dtype}")
            on_host = isinstance(array, np.ndarray)
            address = array.__array_interface__["data"][0] if on_host else array.address
            device = "cpu" if on_host else self._graph.device
            place = _Place(tensor.name, output, device, array.shape, address)
            self._known[tensor.name] = array, place
            yield place


def _element_type(tensor: TensorSpec) -> Any:
    """numpy's type, or ONNX's number of the one that numpy does not have."""
    dtype = DTYPES[tensor.dtype]
    return dtype.onnx_number if dtype.name == "bfloat16" else dtype.storage.type
