"""What linear layers that read the same inputs become.

In: layers, and rows of inputs of a calibration text. Out: a `LinearPlan` of each, and the rounded
weights that the model runs on with.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from firp.export.quantize.formats import Integers, dividing, quantize, round_activations
from firp.export.quantize.gptq import compensate
from firp.export.quantize.kept import in_4_bits, is_finer, kept_format, kept_integers
from firp.export.quantize.smoothing import factors
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.stream import read_array, to_sources
from firp.export.weights.torch_model import read_tensor
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, FINE_ROWS, ROWS, LinearFormat
from firp.runtime.errors import CheckpointError

_MEASURED_ROWS = 256  # of the calibration text, that errors are measured on
# A layer's relative error as int8 rows from which its inputs have two bytes. Smoothed layers of SmolLM2
# have errors of 0.008 to 0.015, but for down_proj: 0.025 to 0.032, and 0.009 with two bytes.
_WORST_ROWS = 0.02
_OUTPUTS = 512  # of all layers that read the same, that smoothing is found for
# That with two bytes from which it is stored in blocks, if those are that many times better.
_WORST_FINE = 0.06
_TIMES_BLOCKS = 3


class LinearPlan(NamedTuple):
    """What one linear layer becomes."""

    format: LinearFormat
    smoothing: np.ndarray | None  # [in] f32: inputs are divided by it, columns multiplied; None: 1
    integers: Callable[[], Integers]  # of the smoothed weight

    def values(self) -> np.ndarray:
        """The rounded weight [out, in] in terms of the inputs as they are."""
        values = self.integers().values()
        return np.ascontiguousarray(values if self.smoothing is None else values / self.smoothing)


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


class _Blocks(NamedTuple):
    """A weight in blocks."""

    form: str
    kept: bool
    integers: Callable[[], Integers]


class _Measured(NamedTuple):
    """One layer as rows, of two bytes too, and as blocks: relative errors on the rows that reach it, how
    many these are.
    """

    rows: int
    rows_error: float | None  # None: no row reaches it
    fine_error: float | None
    blocks_error: float | None
    blocks: _Blocks | None  # None: they do not divide it


class Decision:
    """Finds plans, and holds them with the rounded weights that the model has not read yet."""

    def __init__(self, checkpoint: Checkpoint, method: str, scratch: Path, report: Callable[[int], None]):
        """report: is told how many layers are decided."""
        self.checkpoint = checkpoint
        self.linears: dict[str, LinearPlan] = {}
        self._method = method
        self._in_4_bits = in_4_bits(checkpoint.tensors)
        self._scratch = scratch
        self._report = report
        self._rounded: dict[str, torch.Tensor] = {}

    def tensor(self, source: str) -> torch.Tensor:
        """A tensor of the checkpoint as the model runs on with it, rounded where that is decided."""
        if source in self._rounded:
            return self._rounded.pop(source)
        return read_tensor(source, self.checkpoint.tensors[source], torch.float32)

    def __call__(self, weights: Sequence[Weight], inputs: torch.Tensor, rows: Sequence[torch.Tensor]) -> None:
        """Decide layers whose inputs are rows of the same. inputs: all of these, [n, in]; rows: those
        that reach each layer, [m, in], and may be none. They share their smoothing, for it is one norm
        that divides them, and so they are rows or blocks together.
        """
        names = [weight.name.removesuffix(".weight") for weight in weights]
        self._report(len(self.linears))
        if not inputs.isfinite().all():
            raise CheckpointError(
                f"inputs of {names[0]} are not finite on the calibration text",
                fix="use an undamaged checkpoint, or export with --quantize none",
            )
        smoothing = self._smoothing(weights, inputs)
        measured = [self._measure(*each, smoothing) for each in zip(weights, rows, strict=True)]
        form = self._form(measured)
        for name, weight, found in zip(names, weights, measured, strict=True):
            errors = found.rows_error, found.blocks_error
            if form is None:
                kept = LinearFormat(found.blocks.form, found.blocks.kept, *errors)
                plan = LinearPlan(kept, None, found.blocks.integers)
            else:
                plan = self._rows(weight, LinearFormat(form, False, *errors), smoothing)
            self.linears[name] = plan
            parts = to_sources(weight, plan.values(), self.checkpoint.tensors)
            self._rounded |= zip(weight.sources, map(torch.from_numpy, parts), strict=True)

    def head(self, weight: Weight, inputs: torch.Tensor) -> None:
        """Decide the head, and the table of tokens where it is tied: rows, smoothed through the last norm."""
        name = weight.name.removesuffix(".weight")
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.linears[name] = self._rows(
            weight, LinearFormat(ROWS, False, None, None), self._smoothing([weight], rows)
        )

    def _rows(self, weight: Weight, form: LinearFormat, smoothing: np.ndarray) -> LinearPlan:
        """A layer as rows. What has two bytes is not smoothed: only its weight loses, and so least."""
        factor = None if form.format == FINE_ROWS else smoothing
        return LinearPlan(
            form, factor, functools.partial(_rounded_rows, weight, self.checkpoint.tensors, factor)
        )

    def _smoothing(self, weights: Sequence[Weight], inputs: torch.Tensor) -> np.ndarray:
        """Factors [in] of layers that read rows [n, in]."""
        stride = -(-sum(weight.shape[0] for weight in weights) // _OUTPUTS)
        outputs = np.concatenate([self._values(weight)[::stride] for weight in weights])
        return factors(
            self.checkpoint.config, weights[0].name[: -len(".weight")], inputs, torch.from_numpy(outputs)
        )

    def _form(self, measured: list[_Measured]) -> str | None:
        """The format of rows that layers get which read the same inputs; None: blocks."""
        divided = all(each.blocks for each in measured)
        if divided and self._method == "int4":
            return None
        if _mean([(each.rows, each.rows_error) for each in measured]) <= _WORST_ROWS:  # NaN is not
            return ROWS
        if not divided:
            return FINE_ROWS
        as_fine = _mean([(each.rows, each.fine_error) for each in measured])
        as_blocks = _mean([(each.rows, each.blocks_error) for each in measured])
        return FINE_ROWS if as_fine <= limit(as_blocks) else None

    def _values(self, weight: Weight) -> np.ndarray:
        return read_array(weight, self.checkpoint.tensors)

    def _measure(self, weight: Weight, rows: torch.Tensor, smoothing: np.ndarray) -> _Measured:
        """One layer in both formats, smoothed as rows. rows: inputs [m, in]."""
        values = self._values(weight)
        blocks = self._blocks(weight, values, rows)
        if not len(rows):
            return _Measured(0, None, None, None, blocks)
        sample = rows[:: -(-len(rows) // _MEASURED_ROWS)].numpy()
        blocks_error = None
        with np.errstate(all="ignore"):  # outputs that overflow are the next layer's inputs
            right = sample @ values.T
            smoothed = quantize(values * smoothing, ROWS).values()
            rows_error = relative_error(round_activations(sample / smoothing, ROWS) @ smoothed.T, right)
            fine = round_activations(sample, FINE_ROWS) @ quantize(values, FINE_ROWS).values().T
            fine_error = relative_error(fine, right)
            if blocks:
                found = round_activations(sample, blocks.form) @ blocks.integers().values().T
                blocks_error = relative_error(found, right)
        return _Measured(len(rows), rows_error, fine_error, blocks_error, blocks)

    def _blocks(self, weight: Weight, values: np.ndarray, rows: torch.Tensor) -> _Blocks | None:
        """A weight [out, in] in blocks; None where they do not divide it."""
        tensors = self.checkpoint.tensors
        if not dividing(values.shape):
            return None
        if own := kept_format(weight, tensors):
            return _Blocks(own, True, functools.partial(kept_integers, weight, tensors))
        if self._method == "int8" or (self._in_4_bits and is_finer(weight, tensors)):
            return _Blocks(BLOCKS8, False, functools.partial(_rounded_blocks, weight, tensors, BLOCKS8))
        if not len(rows):
            return _Blocks(BLOCKS4, False, functools.partial(_rounded_blocks, weight, tensors, BLOCKS4))
        file = self._scratch / f"{weight.name}.npz"
        sides = compensate(values, rows)._asdict()
        np.savez(file, **{name: side for name, side in sides.items() if side is not None})
        return _Blocks(BLOCKS4, False, functools.partial(_load, file))


def _rounded_rows(weight: Weight, tensors: dict, smoothing: np.ndarray | None) -> Integers:
    values = read_array(weight, tensors)
    return quantize(values if smoothing is None else values * smoothing, ROWS)


def _rounded_blocks(weight: Weight, tensors: dict, form: str) -> Integers:
    return quantize(read_array(weight, tensors), form)


def _load(file: Path) -> Integers:
    with np.load(file) as arrays:
        return Integers(**arrays)


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    """The root mean square over rows [n, out] of the difference's norm by the row's norm."""
    norms = np.linalg.norm(right, axis=1)
    return float(np.sqrt(np.mean((np.linalg.norm(found - right, axis=1) / np.maximum(norms, 1e-30)) ** 2)))


def _mean(errors: list[tuple[int, float | None]]) -> float:
    """The root mean square of errors over the rows of all layers; 0 where there are none."""
    count = sum(rows for rows, _ in errors)
    return (sum(rows * error**2 for rows, error in errors if rows) / max(1, count)) ** 0.5


def limit(blocks_error: float) -> float:
    """The largest error of rows that is not worth blocks, in which no drafts are decoded."""
    return max(_WORST_FINE, _TIMES_BLOCKS * blocks_error)
