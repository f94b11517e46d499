"""The tensors of a quantized bundle, one weight of the checkpoint in memory at a time.

In: a checkpoint and a `Plan`. Out: `Output`s, and the record for the manifest. A matrix NAME becomes
NAME.weight and NAME.scale, with NAME.zero_point where it has blocks, and NAME.smoothing where its inputs
are smoothed, which no graph reads: with it the weight can be compared with the model's.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from firp.export.quantize.formats import Integers, bits_of, quantize, with_digits
from firp.export.quantize.plan import Plan
from firp.export.quantize.smoothing import column_factors, norm_divisors, row_divisors
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.stream import Output, from_array, from_checkpoint, read_array
from firp.runtime.bundle.precision import (
    BLOCK,
    FORMATS4,
    OFFSET_BLOCKS4,
    ROW_FORMATS,
    ROWS,
    LinearFormat,
    Quantization,
    stored_inputs,
)

_TABLES = ("embed_tokens", "lm_head")


def quantized_outputs(checkpoint: Checkpoint, plan: Plan) -> list[Output]:
    """All weights, in the order of the checkpoint's."""
    smoothing = plan.smoothing
    outputs = []
    for weight in checkpoint.weights:
        name, _, kind = weight.name.rpartition(".")
        divisors = row_divisors(checkpoint.config, name, smoothing)
        if name in _TABLES and name not in plan.linears and kind == "weight":
            outputs += matrix(name, weight.shape, ROWS, _table(weight, checkpoint), None)
        elif name in plan.linears and kind == "weight":
            linear = plan.linears[name]
            outputs += matrix(name, weight.shape, linear.format.format, linear.integers, divisors)
            if linear.smoothing is not None:
                outputs.append(from_array(f"{name}.smoothing", linear.smoothing))
        else:
            divisors = norm_divisors(name, smoothing) if divisors is None else divisors
            factors = column_factors(name, smoothing) if kind == "weight" else None
            outputs.append(_floats(weight, checkpoint, divisors, factors))
    return outputs


def record(checkpoint: Checkpoint, plan: Plan) -> Quantization:
    """What the manifest says of it, the quality left open."""
    formats = {name: linear.format for name, linear in plan.linears.items()}
    tables = {weight.name.rpartition(".")[0] for weight in checkpoint.weights} & set(_TABLES)
    formats |= {name: LinearFormat(ROWS, False, None, None) for name in sorted(tables - set(formats))}
    return Quantization(plan.method, plan.calibration_tokens, formats, None)


def _floats(
    weight: Weight, checkpoint: Checkpoint, divisors: np.ndarray | None, factors: np.ndarray | None
) -> Output:
    """A weight that stays in floats, its rows divided and its columns multiplied, where they are."""
    if divisors is None and factors is None:
        return from_checkpoint(weight, checkpoint.tensors)

    def chunks() -> Iterator[np.ndarray]:
        values = read_array(weight, checkpoint.tensors)
        if divisors is not None:
            values = values / divisors.reshape(divisors.shape + (1,) * (values.ndim - divisors.ndim))
        yield (values if factors is None else values * factors).reshape(-1)

    return Output(weight.name, weight.shape, chunks)


def _table(weight: Weight, checkpoint: Checkpoint) -> Callable[[], Integers]:
    return lambda: quantize(read_array(weight, checkpoint.tensors), ROWS)


def matrix(
    name: str,
    shape: tuple[int, ...],
    form: str,
    integers: Callable[[], Integers],
    divisors: np.ndarray | None = None,
) -> Iterator[Output]:
    """The tensors of one matrix, shape [out, in]. Its integers are made when the first is written, and
    forgotten with the last.
    """
    out, size = shape[0], stored_inputs(shape[1], form)
    made: list[Integers] = []
    scales = (out,) if form in ROW_FORMATS else (size // BLOCK, out)
    parts = {"weight": (size, out), "scale": scales}
    if form not in ROW_FORMATS:
        parts["zero_point"] = scales

    def chunks(part: str) -> Iterator[np.ndarray]:
        if part == "weight":
            made.append(with_digits(integers()) if form == OFFSET_BLOCKS4 else integers())
        values = getattr(made[0], part)
        if part == "scale":
            values = values if divisors is None else values / divisors
            yield np.ascontiguousarray(values, np.float32).reshape(-1)
        else:
            yield _packed(values, form)
        if part == [*parts][-1]:
            made.clear()

    for part, size_of in parts.items():
        dtype = None if part == "scale" else bits_of(form)
        yield Output(f"{name}.{part}", size_of, functools.partial(chunks, part), dtype)


def _packed(values: np.ndarray, form: str) -> np.ndarray:
    """Values as they are written: of 4 bits, two in a byte, the first in the lower half."""
    flat = values.reshape(-1)
    return flat[::2] | flat[1::2] << 4 if form in FORMATS4 else flat
