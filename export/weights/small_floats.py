"""Floats of four and eight bits, as checkpoints keep them beside their scales (OCP Microscaling Formats
specification 1.0, sections 5.3 and 5.4).

In: bytes. Out: float32 values.
"""

import ml_dtypes
import numpy as np

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1, by its lower three bits
_FLOAT4 = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)
_PAIRS = np.stack([_FLOAT4[np.arange(256) & 15], _FLOAT4[np.arange(256) >> 4]], 1)  # the lower bits first
_PAIR_OF_A_BYTE = _PAIRS.view(np.uint64).reshape(-1)  # to look up both at once
_BIAS = 127  # of E8M0


def decoded_floats(content: np.ndarray, codes: str) -> np.ndarray:
    """The values of bytes, flat. codes: "float4" (E2M1), of which a byte holds two, or "float8" (E4M3)."""
    if codes == "float4":
        return _PAIR_OF_A_BYTE[content].view(np.float32)
    return content.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def powers_of_two(exponents: np.ndarray) -> np.ndarray:
    """Scales of type E8M0; infinite where a byte stands for NaN."""
    with np.errstate(over="ignore"):
        return np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS)
