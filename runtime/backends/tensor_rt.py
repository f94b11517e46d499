"""TensorRT and TensorRT-RTX: a bundle's engines on one CUDA device, everything resident there.

In: engines that `firp build` made for this library and device. Out: graphs whose runs are enqueued;
those of decoding are captured as CUDA graphs when their sizes come a second time, and replayed from
then on. One execution context a profile and one a CUDA graph, as TensorRT's guide asks (a context
must not change under a captured graph); all contexts of a session share one block of activations,
since they run one after the other.
"""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from firp.runtime.backends.cuda import GRAPH_RUNS, CudaMemory
from firp.runtime.backends.cuda_runtime import compute_capability, device_name, load_cuda
from firp.runtime.backends.interface import Binding, LoadedGraphs
from firp.runtime.backends.nvidia_library import load_library
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.engine_record import RECORD_NAME, Profile, find_engine_folder, fitting_profile
from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graph_spec import PREFIX, GraphSpec
from firp.runtime.bundle.precision import refuse_quantized
from firp.runtime.errors import BundleError, FirpError

MAX_CUDA_GRAPHS = 64  # of one engine in one session; sizes beyond are enqueued each time


class TensorRTBackend:
    """name: "tensorrt" or "tensorrt-rtx". Raises FirpError where the library, the CUDA bindings or
    a device is missing.
    """

    def __init__(self, name: str, library: ModuleType | None = None, cuda: ModuleType | None = None):
        self.name = name
        self.library = library or load_library(name)
        self.cuda = cuda or load_cuda(extra=name)
        self.compute_capability = compute_capability(self.cuda)
        self.device = f"{device_name(self.cuda)}, {name} {self.library.__version__}"

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        refuse_quantized(bundle.manifest.quantization, self.name)
        folder = find_engine_folder(
            bundle, self.name, self.library.__version__, self.compute_capability, check_hashes
        )
        runtime = self.library.Runtime(self.library.Logger(self.library.Logger.ERROR))
        graphs = {}
        build = f"firp build {bundle.path} --backend {self.name} --force"
        for name, spec in bundle.manifest.graphs_for(PREFIX).items():
            path = folder.plan_path(name)
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise BundleError(f"{self.name} refuses the engine", got=f"'{path}'", fix=build)
            graph = TensorRTGraph(self.library, runtime, engine, spec, folder.record.profiles[name])
            if wrong := graph.differences():
                raise BundleError(f"'{path}' is not the graph its bundle declares", got=wrong, fix=build)
            graphs[name] = graph
        return LoadedGraphs(graphs, folder.record.limits, GRAPH_RUNS)

    def memory(self) -> CudaMemory:
        return CudaMemory(self.cuda)


class TensorRTGraph:
    """runtime: kept, since its engines need it."""

    def __init__(
        self, library: ModuleType, runtime: Any, engine: Any, spec: GraphSpec, profiles: tuple[Profile, ...]
    ):
        self.library = library
        self.runtime = runtime
        self.native = engine
        self.spec = spec
        self.profiles = profiles
        self._runtime_cache = None

    def differences(self) -> str | None:
        """Differences of the engine from the declared graph."""
        engine = self.native
        if engine.num_optimization_profiles != len(self.profiles):
            return f"{engine.num_optimization_profiles} profiles, {len(self.profiles)} in {RECORD_NAME}"
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for mode, tensors in (("INPUT", self.spec.inputs), ("OUTPUT", self.spec.outputs)):
            found = {
                n: engine.get_tensor_dtype(n).name for n in names if engine.get_tensor_mode(n).name == mode
            }
            wanted = {tensor.name: DTYPES[tensor.dtype].tensorrt for tensor in tensors}
            if found != wanted:
                return f"{mode.lower()}s that differ: {sorted(set(found.items()) ^ set(wanted.items()))[:2]}"
        return None

    def runner(self, memory: CudaMemory) -> "TensorRTRunner":
        return TensorRTRunner(self, memory)

    def context(self, captured: bool) -> Any:
        """An execution context whose activations lie in memory of ours. captured: it serves one
        size, for a CUDA graph.
        """
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        # what is compiled once serves all contexts
        if self._runtime_cache is None and hasattr(self.library, "IRuntimeCache"):
            self._runtime_cache = self.native.create_runtime_config().create_runtime_cache()
        return new_context(self.library, self.native, strategy, captured, self._runtime_cache)


def new_context(
    library: ModuleType, engine: Any, strategy: Any, compiled: bool, runtime_cache: Any = None
) -> Any:
    """An execution context. strategy: whose memory its activations lie in; compiled: TensorRT-RTX
    compiles kernels for the sizes of a pass before it runs, else never. Its default swaps them in
    while others run: a capture would keep the first ones, and results would depend on the time.
    """
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    if hasattr(library, "DynamicShapesKernelSpecializationStrategy"):
        kernels = library.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER if compiled else kernels.NONE
    if runtime_cache is not None:
        config.set_runtime_cache(runtime_cache)
    return engine.create_execution_context(config)


@dataclass
class _Prepared:
    """Facts that a runner knows of a binding."""

    profile: int
    cuda_graph: Any = None
    context: "_Context | None" = None  # the one that the CUDA graph was captured from
    refused: bool = False  # it could not be captured


@dataclass
class _Context:
    """An execution context and what it was last told."""

    context: Any
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)

    def bind(self, binding: Binding) -> None:
        """Set the addresses and shapes of a binding."""
        for name, array in binding.inputs.items():
            if self.shapes.get(name) != array.shape:
                if not self.context.set_input_shape(name, array.shape):
                    raise FirpError(
                        "the engine refuses a shape", got=f"{name} {array.shape}", fix="report this as a bug"
                    )
                self.shapes[name] = array.shape
        for arrays in (binding.inputs, binding.outputs):
            for name, array in arrays.items():
                if self.addresses.get(name) != array.address:
                    self.context.set_tensor_address(name, array.address)
                    self.addresses[name] = array.address


class TensorRTRunner:
    """Runs one engine on the stream of one session, by a CUDA graph where it can."""

    def __init__(self, graph: TensorRTGraph, memory: CudaMemory):
        self.graph = graph
        self.memory = memory
        memory.reserve_workspace(graph.native.device_memory_size_v2)
        self._contexts: dict[int, _Context] = {}  # by profile
        self._cuda_graphs = 0

    def run(self, binding: Binding) -> None:
        prepared: _Prepared | None = binding.prepared
        if prepared and prepared.cuda_graph is not None:
            self.memory.launch(prepared.cuda_graph)
            self._count("replays")
        elif prepared and binding.repeats and not prepared.refused and self._cuda_graphs < MAX_CUDA_GRAPHS:
            self._capture(binding, prepared)
        else:
            if prepared is None:
                shapes = {name: array.shape for name, array in binding.inputs.items()}
                prepared = _Prepared(fitting_profile(self.graph.spec.name, self.graph.profiles, shapes))
                binding.prepared = prepared
            if prepared.profile not in self._contexts:
                self._contexts[prepared.profile] = self._context(prepared.profile, captured=False)
            self._enqueue(self._contexts[prepared.profile], binding)
            self._count("fallbacks" if prepared.refused else "enqueued")

    def _count(self, what: str) -> None:
        self.memory.counters[what] += 1

    def _capture(self, binding: Binding, prepared: _Prepared) -> None:
        """Run once from a context of its own, so that nothing is left to prepare, and capture the
        same run for the next times. What cannot be captured has run all the same, and is enqueued
        from now on.
        """
        context = self._context(prepared.profile, captured=True)
        self._enqueue(context, binding)
        capturable = getattr(context.context, "is_stream_capturable", lambda stream: True)
        try:
            if capturable(self.memory.stream):
                prepared.cuda_graph = self.memory.capture(lambda: self._enqueue(context, binding))
        except FirpError:
            pass  # counted
        if prepared.cuda_graph is None:
            prepared.refused = True
            self._count("fallbacks")
            return
        prepared.context = context
        self._cuda_graphs += 1
        self._count("captures")

    def _enqueue(self, context: _Context, binding: Binding) -> None:
        context.bind(binding)
        if not context.context.execute_async_v3(self.memory.stream):
            raise FirpError(
                f"the {self.graph.spec.name} engine does not run", got="an error that TensorRT printed above"
            )

    def _context(self, profile: int, captured: bool) -> _Context:
        context = self.graph.context(captured)
        memory = self.memory
        if context is None:
            raise FirpError(
                "no execution context", got=f"the {self.graph.spec.name} engine's profile {profile}"
            )
        context.set_device_memory(memory.workspace.address, memory.workspace.nbytes)
        if not context.set_optimization_profile_async(profile, memory.stream):
            raise FirpError("the engine refuses a profile", got=f"{self.graph.spec.name}, profile {profile}")
        return _Context(context)
