"""GPTQ: on correlated inputs outputs move less than with rounding to the nearest, as published."""

import numpy as np
import pytest
import torch

from firp.export.quantize.formats import quantize
from firp.export.quantize.gptq import MOST_STEPS, compensate
from firp.runtime.bundle.precision import BLOCKS4


def correlated(seed, rows=512, size=128, rank=24):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, size))
    return (mixed + 0.1 * rng.standard_normal((rows, size))).astype(np.float32)


def error(inputs, found, weight):
    return np.linalg.norm(inputs @ (found.values() - weight).T)


def compensated(inputs, weight):
    return compensate(weight, torch.from_numpy(inputs))


@pytest.mark.parametrize("seed", range(4))
def test_outputs_on_correlated_inputs_move_by_half_at_most(seed):
    inputs = correlated(seed)
    weight = np.random.default_rng(seed + 9).standard_normal((48, 128)).astype(np.float32)
    nearest = error(inputs, quantize(weight, BLOCKS4), weight)
    assert error(inputs, compensated(inputs, weight), weight) < 0.5 * nearest


def test_outputs_on_other_inputs_of_the_same_kind_move_less_too():
    inputs = correlated(0, rows=1024)
    weight = np.random.default_rng(5).standard_normal((48, 128)).astype(np.float32)
    found = compensated(inputs[:512], weight)
    assert error(inputs[512:], found, weight) < error(inputs[512:], quantize(weight, BLOCKS4), weight)


@pytest.mark.parametrize("rows", [1, 4, 32, 100])
def test_few_rows_do_no_harm_to_others(rows):
    """What an expert of many gets of a calibration text."""
    inputs = correlated(1, rows=600, rank=96)
    weight = np.random.default_rng(7).standard_normal((48, 128)).astype(np.float32)
    found = compensated(inputs[:rows], weight)
    assert error(inputs[100:], found, weight) < 1.01 * error(inputs[100:], quantize(weight, BLOCKS4), weight)


def test_uncorrelated_inputs_are_rounded_to_the_nearest():
    weight = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    found = compensate(weight, torch.eye(64))
    scale, zero_point = (np.repeat(side, 32, 0) for side in (found.scale, found.zero_point))
    nearest = np.clip(np.rint(weight.T / scale) + zero_point, 0, 15)
    assert (found.weight == nearest).mean() > 0.99


def test_a_grid_reaches_less_far_where_a_blocks_largest_values_are_few():
    weight = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    found, whole = compensate(weight, torch.eye(64)), quantize(weight, BLOCKS4)
    assert (found.scale < 0.97 * whole.scale).mean() > 0.3
    assert np.square(found.values() - weight).sum() < 0.97 * np.square(whole.values() - weight).sum()


def test_no_value_is_moved_further_than_promised():
    inputs = correlated(3, rank=3)
    weight = np.random.default_rng(3).standard_normal((16, 128)).astype(np.float32)
    found = compensated(inputs, weight)
    steps = np.abs(found.values() - weight) / np.repeat(found.scale, 32, 0).T
    assert steps.max() <= MOST_STEPS + 0.501


def test_inputs_that_are_always_zero_are_no_error():
    inputs = correlated(4)
    inputs[:, 7] = 0
    weight = np.random.default_rng(4).standard_normal((4, 128)).astype(np.float32)
    assert np.isfinite(compensated(inputs, weight).values()).all()
