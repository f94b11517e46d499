"""What every linear layer of a model becomes, found in one run of the model over a calibration text.

In: a checkpoint, a method, token ids. Out: a `Plan`: for each layer its format, its smoothing, and
how to make its integers. The model's weights are streamed, and a layer that is decided runs on with
its rounded weight, so that those after it are measured on the inputs that they will see.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from firp.export.quantize.formats import Integers, dividing, quantize, round_activations
from firp.export.quantize.gptq import compensate
from firp.export.quantize.kept import kept_format, kept_integers
from firp.export.quantize.smoothing import factors
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.stream import read_array, to_sources
from firp.export.weights.streamed_model import Reference
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, ROWS, LinearFormat
from firp.runtime.errors import CheckpointError
from firp.runtime.progress import Progress

_MEASURED_ROWS = 256  # of the calibration text, that errors are measured on
# A layer's relative error as int8 rows from which it is stored in blocks, if those are that many times
# better. Smoothed layers of SmolLM2 have errors of 0.01 to 0.05, in blocks 0.002 to 0.016; the one
# that makes its massive activations has 0.1 and 0.009.
_WORST_ROWS = 0.06
_TIMES_BLOCKS = 3


class LinearPlan(NamedTuple):
    """What one linear layer becomes."""

    format: LinearFormat
    smoothing: np.ndarray | None  # [in] f32: inputs are divided by it, columns multiplied; None: 1
    integers: Callable[[], Integers]  # of the smoothed weight


class Plan(NamedTuple):
    """What all of them become."""

    method: str
    calibration_tokens: int
    linears: dict[str, LinearPlan]  # by the layer's name, without ".weight"

    @property
    def smoothing(self) -> dict[str, np.ndarray]:
        """Factors of the layers that have some."""
        found = {name: linear.smoothing for name, linear in self.linears.items()}
        return {name: factor for name, factor in found.items() if factor is not None}


def is_linear(weight: str) -> bool:
    """Whether a weight of that name is one of a layer's matrices."""
    return weight.startswith("layers.") and weight.endswith("_proj.weight")


def make_plan(
    checkpoint: Checkpoint, method: str, tokens: np.ndarray, scratch: Path, progress: Progress
) -> Plan:
    """Run the model over tokens [N, L] and decide. scratch: a folder for what is computed on the way.
    Raises CheckpointError for activations that are not finite.
    """
    reference = Reference(checkpoint, "float32")
    weights = [weight for weight in checkpoint.weights if is_linear(weight.name)]
    decide = _Decision(checkpoint, method, scratch)
    linears: dict[str, LinearPlan] = {}
    for done, weight in enumerate(weights):
        report = functools.partial(progress, "quantizing", done, len(weights))
        _Group(reference, weight, decide, linears, report)
    reference.run(torch.from_numpy(tokens))
    progress("quantizing", len(weights), len(weights))
    return Plan(method, tokens.size, linears)


class _Group:
    """Modules of the model that read the same inputs, and are one layer of ours."""

    def __init__(
        self,
        reference: Reference,
        weight: Weight,
        decide: "_Decision",
        linears: dict[str, LinearPlan],
        report: Callable[[], None],
    ):
        self._weight = weight
        self._decide = decide
        self._linears = linears
        self._report = report
        self._rounded: list[torch.Tensor] = []  # of the modules that have not run yet
        for index, source in enumerate(weight.sources):
            module = reference.module(source)
            module.register_forward_pre_hook(functools.partial(self._before, index))

    def _before(self, index: int, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if index == 0:
            self._report()
            name = self._weight.name.removesuffix(".weight")
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            plan, rounded = self._decide(self._weight, name, rows)
            self._linears[name] = plan
            parts = to_sources(self._weight, rounded, self._decide.checkpoint.tensors)
            self._rounded = [torch.from_numpy(part) for part in parts]
        module._parameters["weight"] = torch.nn.Parameter(self._rounded.pop(0), requires_grad=False)


class _Decision:
    """Finds the plan of one layer from its inputs."""

    def __init__(self, checkpoint: Checkpoint, method: str, scratch: Path):
        self.checkpoint = checkpoint
        self._method = method
        self._scratch = scratch

    def __call__(self, weight: Weight, name: str, rows: torch.Tensor) -> tuple[LinearPlan, np.ndarray]:
        """The plan, and the rounded weight [out, in] in terms of the inputs as they are. rows: inputs
        [n, in].
        """
        tensors = self.checkpoint.tensors
        values = read_array(weight, tensors)
        largest = rows.abs().amax(0).numpy()
        if not np.isfinite(largest).all():
            raise CheckpointError(
                f"inputs of {name} are not finite on the calibration text",
                fix="use an undamaged checkpoint, or export with --quantize none",
            )
        sample = rows[:: -(-len(rows) // _MEASURED_ROWS)].numpy()
        with np.errstate(all="ignore"):  # outputs that overflow are the next layer's inputs
            right = sample @ values.T
            smoothing = factors(self.checkpoint.config, name, largest, np.abs(values).max(0))
            smoothed = quantize(values * smoothing, ROWS).values()
            rows_error = relative_error(round_activations(sample / smoothing, ROWS) @ smoothed.T, right)
            form, blocked, again = self._blocks(weight, name, values, rows)
            blocks_error = None
            if blocked is not None:
                blocks_error = relative_error(round_activations(sample, form) @ blocked.T, right)
        if blocked is None or (self._method == "int8" and rows_error <= limit(blocks_error)):
            again = functools.partial(_smoothed_rows, weight, tensors, smoothing)
            found = LinearFormat(ROWS, False, rows_error, blocks_error)
            return LinearPlan(found, smoothing, again), np.ascontiguousarray(smoothed / smoothing)
        kept = kept_format(weight, tensors) is not None
        found = LinearFormat(form, kept, rows_error, blocks_error)
        return LinearPlan(found, None, again), np.ascontiguousarray(blocked)

    def _blocks(
        self, weight: Weight, name: str, values: np.ndarray, rows: torch.Tensor
    ) -> tuple[str, np.ndarray | None, Callable[[], Integers] | None]:
        """A weight in blocks: the format, the values [out, in] that it stands for, and how to make it
        again; no values where blocks do not divide it.
        """
        tensors = self.checkpoint.tensors
        if not dividing(values.shape):
            return BLOCKS8, None, None
        if own := kept_format(weight, tensors):
            form, again = own, functools.partial(kept_integers, weight, tensors)
        elif self._method == "int8":
            form, again = BLOCKS8, functools.partial(_rounded_blocks, weight, tensors)
        else:
            file = self._scratch / f"{name}.npz"
            np.savez(file, **compensate(values, rows.T @ rows)._asdict())
            form, again = BLOCKS4, functools.partial(_load, file)
        return form, again().values(), again


def _smoothed_rows(weight: Weight, tensors: dict, smoothing: np.ndarray) -> Integers:
    return quantize(read_array(weight, tensors) * smoothing, ROWS)


def _rounded_blocks(weight: Weight, tensors: dict) -> Integers:
    return quantize(read_array(weight, tensors), BLOCKS8)


def _load(file: Path) -> Integers:
    with np.load(file) as arrays:
        return Integers(**arrays)


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    """The root mean square over rows [n, out] of the difference's norm by the row's norm."""
    norms = np.linalg.norm(right, axis=1)
    return float(np.sqrt(np.mean((np.linalg.norm(found - right, axis=1) / np.maximum(norms, 1e-30)) ** 2)))


def limit(blocks_error: float | None) -> float:
    """The largest error of int8 rows that is not worth blocks, which take more time for every row."""
    return float("inf") if blocks_error is None else max(_WORST_ROWS, _TIMES_BLOCKS * blocks_error)
