"""4-bit blocks whose rounding errors correct each other (GPTQ, Frantar et al. 2022).

In: a weight [out, in] and the products of its inputs on a calibration text. Out: integers in blocks.
Inputs are rounded one by one, and what each rounding did to the outputs is made up for, as far as
inputs are correlated, by those that follow.
"""

import numpy as np
import torch

from firp.export.quantize.formats import Integers, nibble_grid
from firp.runtime.bundle.precision import BLOCK

# Steps of the grid that a corrected value may lie from the weight's own, so that a bundle's weights
# can be checked one by one against the model's.
MOST_STEPS = 4.0
_DAMPING = 0.01  # of the mean diagonal, as in the paper


def compensate(weight: np.ndarray, products: torch.Tensor) -> Integers:
    """weight: [out, in] f32, `in` a multiple of BLOCK; products: [in, in], the sum over calibration
    rows x of x' x.
    """
    inverse = _inverse_factor(products.double()).numpy()
    own = np.ascontiguousarray(weight.T, np.float64)  # [in, out]
    left = own.copy()  # what is still to be rounded
    size, out = own.shape
    scales, zero_points = nibble_grid(weight.T.reshape(-1, BLOCK, out))
    integers = np.empty((size, out), np.uint8)
    for start in range(0, size, BLOCK):
        end = start + BLOCK
        step, offset = (side[start // BLOCK].astype(np.float64) for side in (scales, zero_points))
        far = MOST_STEPS * step
        errors = np.empty((BLOCK, out))
        for column in range(start, end):
            value = np.clip(left[column], own[column] - far, own[column] + far)
            integer = np.clip(np.rint(value / step) + offset, 0, 15)
            integers[column] = integer
            error = (left[column] - (integer - offset) * step) / inverse[column, column]
            left[column + 1 : end] -= inverse[column, column + 1 : end, None] * error
            errors[column - start] = error
        left[end:] -= inverse[start:end, end:].T @ errors
    return Integers(integers, scales, zero_points)


def _inverse_factor(products: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped products' inverse."""
    diagonal = products.diagonal()
    damping = _DAMPING * diagonal.mean().clamp(min=1e-12)
    damped = products + torch.eye(len(products), dtype=products.dtype) * damping
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
