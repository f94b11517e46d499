"""4-bit blocks whose rounding errors correct each other (GPTQ, Frantar et al. 2022).

In: a weight [out, in] and rows of its inputs on a calibration text. Out: integers in blocks.
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
_DAMPING = 0.01  # of the mean diagonal, as in the paper, which knows inputs from a hundred times as many rows
# Beside it, for each time that inputs are as many as the rows they are known from. Few rows leave
# directions in which a correction seems to cost nothing. On rows that it did not see, down_proj of
# SmolLM2, known from as many rows as it has inputs, moved by 0.109 with the paper's damping, 0.083 with
# this and 0.087 when rounded to the nearest.
_SCARCE = 1.0
# Of a block's range, that its grid may reach over: its largest values are few, and finer steps serve the
# others. A value is never cut by more than MOST_STEPS.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


def compensate(weight: np.ndarray, inputs: torch.Tensor) -> Integers:
    """weight: [out, in] f32, `in` a multiple of BLOCK; inputs: rows [n, in] of the calibration text."""
    damping = _DAMPING + _SCARCE * weight.shape[1] / len(inputs)
    products = _damped((inputs.T @ inputs).double(), damping)
    inverse = _inverse_factor(products).numpy()
    own = np.ascontiguousarray(weight.T, np.float64)  # [in, out]
    left = own.copy()  # what is still to be rounded
    size, out = own.shape
    sizes = products.diagonal().numpy().reshape(-1, BLOCK, 1)
    scales, zero_points = _grid(weight.T.reshape(-1, BLOCK, out), sizes)
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
        following = torch.from_numpy(inverse[start:end, end:].T)
        torch.from_numpy(left[end:]).addmm_(following, torch.from_numpy(errors), alpha=-1)  # in place
    return Integers(integers, scales, zero_points)


def _grid(blocks: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales f32 and zero points u8, [n, out] each, of blocks [n, BLOCK, out]: those that lose least, of
    several shares of the range. sizes: what an input counts, [n, BLOCK, 1].
    """
    scales, zero_points = nibble_grid(blocks)
    least = np.full(scales.shape, np.inf)
    for share in _SHARES:
        step, offset = nibble_grid(blocks * np.float32(share))
        low = -offset[:, None].astype(np.float32)
        rounded = np.clip(np.rint(blocks / step[:, None]), low, low + 15) * step[:, None]
        lost = (sizes * (rounded - blocks) ** 2).sum(1)
        better = lost < least
        least = np.where(better, lost, least)
        scales, zero_points = np.where(better, step, scales), np.where(better, offset, zero_points)
    return scales, zero_points


def _damped(products: torch.Tensor, damping: float) -> torch.Tensor:
    """Products [in, in] of inputs and, on the diagonal, a share of its mean."""
    added = damping * products.diagonal().mean().clamp(min=1e-12)
    return products + torch.eye(len(products), dtype=products.dtype) * added


def _inverse_factor(products: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of products [in, in]: products are R Rᵀ with R upper, the
    factor of inputs in the opposite order, and R⁻¹ is what is wanted. Inverting products would take ten
    times as long.
    """
    upper = torch.linalg.cholesky(products.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True)
