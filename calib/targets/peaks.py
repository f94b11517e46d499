"""The device's peaks, measured on the device itself: how fast it moves bytes, and how fast it
multiplies.

In: the ONNX Runtime options that the graphs run with, or a CUDA device. Out: `Peaks`. Nothing is
looked up in a table.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from firp.calib.targets.cost import Peaks
from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.machine import cores

COPY_BYTES = 512 * 2**20  # far larger than caches
GEMM_SIZE = 2048
# At least so many runs and seconds; the best run counts: a peak, not a usual value.
REPEATS = 5
SECONDS = 1.5


def cpu_peaks(options: Any, dtype: str) -> Peaks:
    """A copy by as many threads as the graphs have, and a GEMM through ONNX Runtime."""
    threads = options.intra_op_num_threads or cores()
    source = np.ones((threads, COPY_BYTES // 8 // threads))  # float64
    target = np.empty_like(source)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(lambda i: np.copyto(target[i], source[i]), range(threads))))
    bandwidth = 2 * source.nbytes / seconds / 1e9
    by = (
        f"numpy copy by {threads} threads, read and written; "
        f"MatMul of {GEMM_SIZE} x {GEMM_SIZE} {dtype} by ONNX Runtime"
    )
    return Peaks(bandwidth, _gemm_gflop_per_s(options, "CPUExecutionProvider", dtype), by)


def cuda_peaks(options: Any, dtype: str) -> Peaks:
    """A copy on the device and a GEMM, both through ONNX Runtime's CUDA provider."""
    array = np.ones(COPY_BYTES // 4, np.float32)
    seconds = _onnxruntime_seconds("Identity", options, "CUDAExecutionProvider", array)
    by = (
        f"ONNX Runtime on CUDA: Identity of {COPY_BYTES >> 20} MiB, read and written; "
        f"MatMul of {GEMM_SIZE} x {GEMM_SIZE} {dtype}"
    )
    return Peaks(
        2 * array.nbytes / seconds / 1e9, _gemm_gflop_per_s(options, "CUDAExecutionProvider", dtype), by
    )


def cuda_copy_peaks(memory: CudaMemory) -> Peaks:
    """A copy on the device. Arithmetic is not measured."""
    source, target = (memory.zeros((1, 1, COPY_BYTES), np.uint8, "bandwidth") for _ in range(2))

    def run() -> None:
        memory.move_rows(source, [0], target, 0)
        memory.wait()

    seconds = _best(run)
    return Peaks(
        2 * COPY_BYTES / seconds / 1e9,
        None,
        f"a copy of {COPY_BYTES >> 20} MiB on the device, read and written",
    )


def _gemm_gflop_per_s(options: Any, provider: str, dtype: str) -> float:
    square = np.full((GEMM_SIZE, GEMM_SIZE), 0.01, dtype)
    return 2 * GEMM_SIZE**3 / _onnxruntime_seconds("MatMul", options, provider, square, square) / 1e9


def _onnxruntime_seconds(op: str, options: Any, provider: str, *arrays: np.ndarray) -> float:
    """Seconds of the fastest run of one operator, on arrays that lie on the device already."""
    import onnxruntime as ort
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    names = [f"x{i}" for i in range(len(arrays))]
    values = [helper.make_tensor_value_info(name, kind, [None] * arrays[0].ndim) for name in (*names, "y")]
    graph = helper.make_graph([helper.make_node(op, names, ["y"])], op, values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    binding = session.io_binding()
    held = [ort.OrtValue.ortvalue_from_numpy(array, device, 0) for array in arrays]
    for name, array in zip(names, held, strict=True):
        binding.bind_ortvalue_input(name, array)
    result = ort.OrtValue.ortvalue_from_shape_and_type(arrays[0].shape, arrays[0].dtype, device, 0)
    binding.bind_ortvalue_output("y", result)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return _best(run)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    run()  # the first touches memory and picks kernels
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < SECONDS:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
