"""Types of values: what each is called elsewhere, and how its values lie in memory.

In: a name in `DTYPES`. Out: one row a type, which exporter, backends and profiling read. numpy has
no bfloat16: such values lie in uint16, as their upper half of a float32.
"""

from typing import NamedTuple

import numpy as np


class Dtype(NamedTuple):
    """A row of the table: one type of tensors."""

    name: str
    storage: np.dtype  # of arrays in memory
    lowest: np.generic | None  # finite value, as it lies in memory; None where no mask is of this type
    exponent: int  # the bits that are all set in NaN and infinity; 0 where there are none
    onnx: str  # name in onnx.TensorProto
    onnx_number: int  # likewise
    onnx_runtime: str  # what a session says of its inputs and outputs
    has_cpu_kernels: bool  # in ONNX Runtime
    tensorrt: str  # name in tensorrt.DataType
    safetensors: str

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.storage.itemsize


DTYPES = {
    "float32": Dtype(
        "float32",
        np.dtype(np.float32),
        lowest=np.finfo(np.float32).min,
        exponent=0x7F800000,
        onnx="FLOAT",
        onnx_number=1,
        onnx_runtime="tensor(float)",
        has_cpu_kernels=True,
        tensorrt="FLOAT",
        safetensors="F32",
    ),
    "float16": Dtype(
        "float16",
        np.dtype(np.float16),
        lowest=np.finfo(np.float16).min,
        exponent=0x7C00,
        onnx="FLOAT16",
        onnx_number=10,
        onnx_runtime="tensor(float16)",
        has_cpu_kernels=True,
        tensorrt="HALF",
        safetensors="F16",
    ),
    "bfloat16": Dtype(
        "bfloat16",
        np.dtype(np.uint16),
        lowest=np.uint16(0xFF7F),
        exponent=0x7F80,
        onnx="BFLOAT16",
        onnx_number=16,
        onnx_runtime="tensor(bfloat16)",
        has_cpu_kernels=False,
        tensorrt="BF16",
        safetensors="BF16",
    ),
    "int64": Dtype(
        "int64",
        np.dtype(np.int64),
        lowest=None,
        exponent=0,
        onnx="INT64",
        onnx_number=7,
        onnx_runtime="tensor(int64)",
        has_cpu_kernels=True,
        tensorrt="INT64",
        safetensors="I64",
    ),
    "int8": Dtype(
        "int8",
        np.dtype(np.int8),
        lowest=None,
        exponent=0,
        onnx="INT8",
        onnx_number=3,
        onnx_runtime="tensor(int8)",
        has_cpu_kernels=True,
        tensorrt="INT8",
        safetensors="I8",
    ),
    "uint8": Dtype(
        "uint8",
        np.dtype(np.uint8),
        lowest=None,
        exponent=0,
        onnx="UINT8",
        onnx_number=2,
        onnx_runtime="tensor(uint8)",
        has_cpu_kernels=True,
        tensorrt="UINT8",
        safetensors="U8",
    ),
}
MODEL_DTYPES = ("float32", "float16", "bfloat16")  # of weights, arithmetic, cache; the first is the default
_BFLOAT16 = DTYPES["bfloat16"].storage
_LOWEST = {row.storage: row.lowest for row in DTYPES.values()}


def lowest(storage: np.dtype) -> np.generic:
    """The lowest finite value of a type, as it lies in memory."""
    return _LOWEST[storage]


def to_storage(values: np.ndarray, storage: np.dtype) -> np.ndarray:
    """float32 values as they lie in memory; bfloat16 rounds towards zero."""
    if storage == _BFLOAT16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(storage)


def to_float32(stored: np.ndarray) -> np.ndarray:
    """Values that lie in memory, as float32."""
    if stored.dtype == _BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def rounded(value: float, dtype: str) -> np.ndarray:
    """A number as a scalar of a type, as it lies in memory, rounded to the nearest."""
    if dtype != "bfloat16":
        return np.array(value, DTYPES[dtype].storage)
    bits = int(np.array(value, np.float32).view(np.uint32))
    return np.array((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, _BFLOAT16)
