"""Rounding told from error: how far values may lie from the truth, or from another computation.

In: rows of values, the truth in float64, and the rows of another implementation in the same type,
the yardstick. Out: the distance in units of the yardstick's own, with the limit for it.
"""

from typing import NamedTuple

import numpy as np

from firp.export.verify.report import Check
from firp.runtime.bundle.format import Manifest

# How many times as far from float64 as Hugging Face in the same type a right graph may lie. Both
# sum the same products in another order, so their distances are two draws of one kind: of 62
# bundles measured (the demo model, SmolLM2-135M, 40 random models in float32 and 20 in float16,
# most of them so sharp that a constant limit refused them) the farthest lay 2.3 times as far, the
# median 1.2. The mildest seeded error (`tests/export/verify/test_mutations.py`) lies thousands of
# times as far.
YARDSTICKS = 4.0
# Half the spacing of 1.0: the largest relative error of one rounding. Added to the yardstick, so
# that a model that Hugging Face happens to compute exactly leaves room for a few roundings.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
NEVER_ZERO = 1e-30  # the least magnitude of a row, to divide by

# Two computations of one graph, without the truth: the largest difference of a value in a row up to
# VALUE_SCALE and a model of up to LAYER_SCALE layers, in proportion for larger rows and deeper
# models. float32: seven times what the demo model's 8 layers show; half types: their unit roundoff
# times the residual stream's magnitude.
ABSOLUTE_LIMIT = {"float32": 1e-4, "float16": 0.25, "bfloat16": 2.0}
VALUE_SCALE = 16.0
LAYER_SCALE = 16


class Distance(NamedTuple):
    """Distances of rows from the truth, each relative to the magnitude of its own row: in a model
    whose first row has values of 20,000 and all others values of 1, every row counts. NaN where a
    value is.
    """

    norm: float  # root mean square over rows of the difference's norm by the row's
    largest: float  # over all values, the difference by the row's largest value


def distance(rows: list[np.ndarray], truth: list[np.ndarray]) -> Distance:
    """Both: arrays [T, features] of any T, the truth in float64."""
    true = np.concatenate(truth)
    off = np.concatenate(rows) - true
    norms = np.linalg.norm(off, axis=-1) / np.maximum(np.linalg.norm(true, axis=-1), NEVER_ZERO)
    largest = np.abs(off).max(-1) / np.maximum(np.abs(true).max(-1), NEVER_ZERO)
    return Distance(float(np.sqrt(np.mean(norms**2))), float(largest.max()))


def larger(a: Distance, b: Distance) -> Distance:
    """The larger of each."""
    return Distance(*map(max, a, b))


def judge(name: str, ours: Distance, yardstick: Distance, dtype: str) -> Check:
    """The worse of the two distances in units of the yardstick's, at most YARDSTICKS. NaN fails."""
    units = [mine / (theirs + UNIT_ROUNDOFF[dtype]) for mine, theirs in zip(ours, yardstick, strict=True)]
    worst = float(np.max(units))
    return Check(name, worst <= YARDSTICKS, worst, YARDSTICKS)


def value_limit(manifest: Manifest) -> float:
    """The largest `scaled_difference` of two computations of one graph that rounding explains."""
    return ABSOLUTE_LIMIT[manifest.precision.compute] * max(
        1.0, manifest.model.num_hidden_layers / LAYER_SCALE
    )


def scaled_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays, in units of the scale of its row, the last axis; NaN
    where either has one.
    """
    scale = np.maximum(1.0, np.abs(theirs).max(-1, keepdims=True) / VALUE_SCALE)
    return float(np.max(np.abs(ours - theirs) / scale))
