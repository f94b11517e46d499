"""A double of the TensorRT runtime, for tests: executing an engine runs its ONNX graph by ONNX
Runtime on the bound addresses.

It proves our logic, not TensorRT. A plan is a JSON object: the ONNX file and the profiles. What the
real one refuses, it refuses: shapes outside the profile, addresses that are not set or not alive,
activations without memory, another version's plan; a captured run fails when its context has
changed since.
"""

import ctypes
import json
import math
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
from support.cuda_double import CudaDouble, DeviceError, cudaError_t

from firp.export.tensorrt.shapes import graph_profiles
from firp.runtime import engine as runtime_engine
from firp.runtime.backends.tensor_rt import TensorRTBackend
from firp.runtime.bundle.engine_record import (
    ENGINES_FOLDER,
    FORMAT_VERSION,
    RECORD_NAME,
    EngineRecord,
    folder_name,
    source_hashes,
)
from firp.runtime.bundle.format import FileEntry, load_bundle, sha256_file
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.bundle.limits import Limits

VERSION = "1.7.1.116"
WORKSPACE_BYTES = {"lower": 5000, "predictors": 100, "upper": 7000}
_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class RuntimeConfig:
    """Its default is LAZY: kernels change while others run, so that a capture would keep the first
    ones.
    """

    def __init__(self, library):
        self.library, self.allocation, self.cache = library, ExecutionContextAllocationStrategy.STATIC, None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self.allocation = strategy

    def create_runtime_cache(self):
        self.library.runtime_caches += 1
        return object()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class TensorRTDouble:
    """The module. cuda: the `CudaDouble` whose memory it runs on."""

    __version__ = VERSION
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    IRuntimeCache = object

    class Logger:
        ERROR = 1

        def __init__(self, severity):
            self.severity = severity

    def __init__(self, cuda):
        self.cuda, self.runs, self.contexts, self.runtime_caches, self.capturable = cuda, 0, 0, 0, True
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, plan):
        try:
            return Engine(self, json.loads(plan))
        except ValueError:
            return None  # as the real one


class Engine:
    def __init__(self, library, plan):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.library, self.profiles, self.graph = library, plan["profiles"], plan["graph"]
        self.session = ort.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        self.inputs = {item.name: _TYPES[item.type] for item in self.session.get_inputs()}
        self.outputs = {item.name: _TYPES[item.type] for item in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.profiles)
        self.device_memory_size_v2 = WORKSPACE_BYTES[self.graph]

    def get_tensor_name(self, index):
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={**self.inputs, **self.outputs}[name])

    def create_runtime_config(self):
        return RuntimeConfig(self.library)

    def create_execution_context(self, config):
        assert config.allocation is ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.cache is not None
        self.library.contexts += 1
        return Context(self, config.dynamic_shapes_kernel_specialization_strategy)


class Context:
    def __init__(self, engine, kernels):
        self.kernels = kernels
        self.engine, self.profile, self.workspace, self.version = engine, None, (0, 0), 0
        self.shapes, self.addresses = {}, {}

    def is_stream_capturable(self, stream):
        return (
            self.engine.library.capturable and self.kernels is DynamicShapesKernelSpecializationStrategy.EAGER
        )

    def set_device_memory(self, address, size):
        self.workspace, self.version = (address, size), self.version + 1

    def set_optimization_profile_async(self, index, stream):
        self.profile, self.version = index, self.version + 1
        return 0 <= index < len(self.engine.profiles)

    def set_input_shape(self, name, shape):
        self.version += 1
        smallest, _, largest = self.engine.profiles[self.profile][name]
        inside = len(shape) == len(smallest) and all(
            a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True)
        )
        if inside:
            self.shapes[name] = tuple(shape)
        return inside

    def set_tensor_address(self, name, address):
        self.addresses[name], self.version = address, self.version + 1
        return True

    def execute_async_v3(self, stream):
        engine = self.engine
        complete = set(self.shapes) == set(engine.inputs) and set(self.addresses) == {
            *engine.inputs,
            *engine.outputs,
        }
        if 0 in self.addresses.values():
            return False
        if stream.capturing is not None and not self.is_stream_capturable(stream):
            return False
        if self.profile is None or not complete or self.workspace[1] < engine.device_memory_size_v2:
            return False
        version, shapes, addresses = self.version, dict(self.shapes), dict(self.addresses)

        def run():
            if captured and self.version != version:
                raise DeviceError(
                    cudaError_t.cudaErrorLaunchFailure, "the context changed under a captured graph"
                )
            self._execute(shapes, addresses)

        captured = stream.capturing is not None
        stream.add(run)
        return True

    def _execute(self, shapes, addresses):
        engine, cuda = self.engine, self.engine.library.cuda
        address, size = self.workspace
        cuda.need(cuda.device, address, size)
        ctypes.memset(address, 0xAB, size)  # activations
        binding = engine.session.io_binding()
        for name, kind in engine.inputs.items():
            cuda.need(cuda.device, addresses[name], math.prod(shapes[name]) * np.dtype(_NUMPY[kind]).itemsize)
            binding.bind_input(name, "cpu", 0, _NUMPY[kind], shapes[name], addresses[name])
        for name in engine.outputs:
            binding.bind_output(name)
        try:
            engine.session.run_with_iobinding(binding)
        except Exception as error:
            raise DeviceError(cudaError_t.cudaErrorLaunchFailure, str(error)) from error
        for name, value in zip(engine.outputs, binding.copy_outputs_to_cpu(), strict=True):
            cuda.need(cuda.device, addresses[name], value.nbytes)
            ctypes.memmove(addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
        engine.library.runs += 1


def write_engines(bundle, limits=None, backend="tensorrt-rtx", capability="8.9", version=VERSION):
    """What `firp build` would leave, with plans that the double runs."""
    limits, manifest = limits or Limits(256, 1, 64), bundle.manifest
    graphs = manifest.graphs_for(PREFIX)
    folder = bundle.path / ENGINES_FOLDER / folder_name(backend, version, (capability,))
    folder.mkdir(parents=True)
    profiles = {name: graph_profiles(manifest, name, limits) for name in graphs}
    plans, sources = {}, {}
    for name, spec in graphs.items():
        plan = {
            "graph": name,
            "onnx": str(bundle.graph_path(spec)),
            "profiles": [profile.shapes for profile in profiles[name]],
        }
        path = folder / f"{name}.plan"
        path.write_text(json.dumps(plan))
        plans[name], sources = (
            FileEntry(path.stat().st_size, sha256_file(path)),
            sources | source_hashes(manifest, name),
        )
    record = EngineRecord(
        format_version=FORMAT_VERSION,
        backend=backend,
        library_version=version,
        compute_capabilities=(capability,),
        limits=limits,
        profiles=profiles,
        built_from=sources,
        plans=plans,
        build_seconds={},
        peak_bytes=0,
    )
    write_json(folder / RECORD_NAME, to_json(record))
    return folder


def device_engine(bundle, limits=None, memory_bytes=2**33, options=None):
    """An Engine on the double, with its engines written first."""
    loaded = load_bundle(bundle)
    if not (bundle / ENGINES_FOLDER).exists():
        write_engines(loaded, limits)
    cuda = CudaDouble(memory_bytes)
    backend = TensorRTBackend("tensorrt-rtx", TensorRTDouble(cuda), cuda)
    return runtime_engine.Engine(loaded, backend, options=options)
