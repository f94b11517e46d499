"""Elementwise functions as coarse as those of ONNX Runtime, in a model of torch.

In: a context around the model's forward pass. Out: the same values, but for what tanh and the logistic
function are off by. ONNX Runtime computes both by polynomials: their error is a few units of the last
place of 1, however small the value itself is, where torch rounds the value. 1 + tanh(x) and the
logistic function are small for negative x, and a norm after an MLP of one feature makes all of its
size: nothing else of such a model is left but that error.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ERROR = 5 * 2.0**-24  # of tanh and the logistic function in float32, whose error is 4.3 units at the most
_OF_THE_INPUT = {"silu": 1.0, "gelu": 0.5}  # by how much of it the function's own error counts
_ALONE = ("tanh", "sigmoid")


class CoarseFunctions(TorchFunctionMode):
    """Adds an error of ERROR at the most, drawn anew for each value."""

    def __init__(self, seed: int):
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _ALONE:
            return made + self._errors(made)
        if name in _OF_THE_INPUT:
            return made + _OF_THE_INPUT[name] * args[0] * self._errors(made)
        return made

    def _errors(self, like: torch.Tensor) -> torch.Tensor:
        return ERROR * torch.empty_like(like).uniform_(-1, 1, generator=self._generator)
