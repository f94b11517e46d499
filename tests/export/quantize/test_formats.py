"""Formats of quantized weights: what is rounded how."""

import numpy as np
import pytest

from firp.export.quantize.formats import dividing, quantize, round_activations
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, FINE_ROWS, ROW_FORMATS, ROWS

ROUNDED = (ROWS, FINE_ROWS, BLOCKS8, BLOCKS4)


@pytest.fixture
def weight():
    """[out, in]; one output is all zeros, one block of another too, and outputs differ in size."""
    made = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    made[1] = 0
    made[2, 32:64] = 0
    made[3] *= 1e4
    return made


@pytest.mark.parametrize("form", ROUNDED)
def test_every_value_is_rounded_to_the_nearest(form, weight):
    found = quantize(weight, form)
    step = found.scale[None] if form in ROW_FORMATS else np.repeat(found.scale, 32, 0)
    assert found.weight.shape == (96, 6)
    assert np.max(np.abs(found.values() - weight) / step.T) <= 0.5001


@pytest.mark.parametrize("form", ROUNDED)
def test_zeros_stay_zeros_with_a_scale_that_divides(form, weight):
    found = quantize(weight, form)
    assert not found.values()[1].any()
    assert not found.values()[2, 32:64].any()
    assert (found.scale > 0).all()
    assert np.isfinite(found.scale).all()


def test_four_bits_reach_from_the_least_to_the_largest_value():
    values = np.linspace(-1, 2, 32, dtype=np.float32)[None]
    found = quantize(values, BLOCKS4)
    assert found.weight.min() == 0
    assert found.weight.max() == 15
    assert np.abs(found.values() - values).max() <= 3 / 15 / 2 + 1e-6


@pytest.mark.parametrize(("form", "levels"), [(ROWS, 127), (BLOCKS8, 127)])
def test_eight_bits_are_used_whole(form, levels, weight):
    found = quantize(weight, form).weight.astype(int)
    assert np.abs(found).max() == levels


def test_a_row_of_activations_does_not_depend_on_the_others():
    rows = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    rows[2] *= 1e4
    for form in (ROWS, FINE_ROWS, BLOCKS8):
        alone = np.concatenate([round_activations(row[None], form) for row in rows])
        assert (alone == round_activations(rows, form)).all()


def test_a_second_byte_leaves_less_than_a_two_hundredth_of_the_error():
    rows = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    one, two = (np.abs(round_activations(rows, form) - rows).max() for form in (ROWS, FINE_ROWS))
    assert two < one / 200


@pytest.mark.parametrize("form", ROW_FORMATS)
def test_rows_of_zeros_stay_zeros(form):
    assert not round_activations(np.zeros((2, 64), np.float32), form).any()


@pytest.mark.parametrize(
    ("shape", "divides"), [((4, 64), True), ((4, 48), False), ((3, 64), False), ((2, 32), True)]
)
def test_blocks_divide_whole_inputs_alone(shape, divides):
    assert dividing(shape) == divides
