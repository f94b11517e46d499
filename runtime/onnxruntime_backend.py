"""ONNX Runtime on the CPU: one session a graph for prefill, decode and verify, bound to the caller's own arrays."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from firp.runtime.errors import BundleError, FirpError
from firp.runtime.graph_spec import GraphSpec, TensorSpec

_EXECUTABLE_DTYPES = ("float32", "float16")
_ORT_TYPE = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}


class OnnxRuntimeBackend:
    """threads: of each graph's thread pool; None takes one for each core."""

    name = "cpu"

    def __init__(self, threads: int | None = None):
        self.device = f"{_processor()}, {threads or _cores()} threads"
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads or 0
        self.options.inter_op_num_threads = 1
        # Three graphs take turns, each with threads of its own: threads that spin after a run would slow the next graph down.
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.options.log_severity_level = 3

    def load(self, path: Path, spec: GraphSpec) -> "OnnxRuntimeGraph":
        unsupported = {t.dtype for t in (*spec.inputs, *spec.outputs)} - {*_EXECUTABLE_DTYPES, "int64"}
        if unsupported:
            raise FirpError(
                f"ONNX Runtime has no CPU kernels for {' and '.join(sorted(unsupported))}", got=f"'{path}'",
                expected=" or ".join(_EXECUTABLE_DTYPES), fix="export the model with --dtype float32",
            )  # fmt: skip
        try:
            session = ort.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = str(error).splitlines()[0]
            raise BundleError("graph does not load", got=f"'{path}': {reason}", fix="export the model again") from error
        for kind, declared, actual in (
            ("input", spec.inputs, session.get_inputs()),
            ("output", spec.outputs, session.get_outputs()),
        ):
            found = {item.name: (item.type, len(item.shape)) for item in actual}
            wanted = {item.name: (_ORT_TYPE[item.dtype], len(item.shape)) for item in declared}
            if found != wanted:
                wrong = sorted(set(found.items()) ^ set(wanted.items()))
                raise BundleError(
                    f"'{path}' is not the graph its bundle declares", got=f"{kind}s that differ: {wrong[:2]}", fix="export again"
                )
        return OnnxRuntimeGraph(session, spec)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({platform.machine()})"


class OnnxRuntimeGraph:
    def __init__(self, session: ort.InferenceSession, spec: GraphSpec):
        self.session, self.spec = session, spec

    def runner(self) -> "OnnxRuntimeRunner":
        return OnnxRuntimeRunner(self.session, self.spec)


class OnnxRuntimeRunner:
    """One binding, kept; an array whose address and shape are those of the last run costs no rebinding."""

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec):
        self._session, self._spec = session, spec
        self._binding = session.io_binding()
        self._types = {tensor.name: np.dtype(tensor.dtype) for tensor in (*spec.inputs, *spec.outputs)}
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        self._bind(self._spec.inputs, inputs, self._binding.bind_input)
        self._bind(self._spec.outputs, outputs, self._binding.bind_output)
        self._session.run_with_iobinding(self._binding)

    def _bind(self, tensors: tuple[TensorSpec, ...], arrays: Mapping[str, np.ndarray], bind) -> None:
        bound, types = self._bound, self._types
        for tensor in tensors:
            name = tensor.name
            array = arrays[name]
            key = (array.__array_interface__["data"][0], array.shape)
            if bound.get(name) == key:
                continue
            if array.dtype != types[name] or not array.flags.c_contiguous:
                raise ValueError(f"{name}: got {array.dtype} array, expected contiguous {types[name]}")
            bind(name, "cpu", 0, types[name], list(key[1]), key[0])
            bound[name] = key
