"""A double of ONNX Runtime's CUDA provider, for tests: runs are asked for on a stream of the CUDA
double, and done on the CPU.

It proves our logic, not ONNX Runtime. A run reads the binding when it is asked for, as the real one
does, and is done when somebody waits for the stream. Addresses must be alive and large enough.
"""

import math
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
from support.cuda_double import DeviceError, cudaError_t

from firp.runtime.bundle.graph_spec import HOST_INPUTS

CUDA = "CUDAExecutionProvider"


class OnnxRuntimeDouble:
    """The module. providers: of its sessions; without CUDA among them it has fallen back."""

    __version__ = ort.__version__

    def __init__(self, cuda, providers=(CUDA, "CPUExecutionProvider"), on_cpu=("Shape", "Concat")):
        self.cuda, self.providers, self.on_cpu = cuda, list(providers), on_cpu

    def get_available_providers(self):
        return [CUDA, "CPUExecutionProvider"]

    def InferenceSession(self, path, options, providers):
        ((name, settings),) = providers
        assert name == CUDA
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        return Session(self, path, self.cuda.streams[int(settings["user_compute_stream"])])


class Session:
    def __init__(self, library, path, stream):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.library, self.stream = library, stream
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

    def get_providers(self):
        return self.library.providers

    def get_provider_graph_assignment_info(self):
        nodes = [SimpleNamespace(op_type=op) for op in self.library.on_cpu]
        attention = SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [SimpleNamespace(op_type="Gemm")])
        return [attention, SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]

    def io_binding(self):
        return Binding()

    def run_with_iobinding(self, binding, run_options):
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        inputs, outputs, cuda = dict(binding.inputs), dict(binding.outputs), self.library.cuda

        def run():
            real = self.session.io_binding()
            for bind, arrays in ((real.bind_input, inputs), (real.bind_output, outputs)):
                for name, (device, kind, shape, address) in arrays.items():
                    if device == "cuda":
                        cuda.need(cuda.device, address, math.prod(shape) * np.dtype(kind).itemsize)
                    bind(name, "cpu", 0, kind, shape, address)
            try:
                self.session.run_with_iobinding(real)
            except Exception as error:
                raise DeviceError(cudaError_t.cudaErrorLaunchFailure, str(error)) from error

        self.stream.add(run)


class Binding:
    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, device, index, kind, shape, address):
        assert device == ("cpu" if name in HOST_INPUTS else "cuda")
        assert index == 0
        self.inputs[name] = device, kind, shape, address

    def bind_output(self, name, device, index, kind, shape, address):
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = device, kind, shape, address
