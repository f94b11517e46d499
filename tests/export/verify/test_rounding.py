"""Distances from the truth, and the limit for them."""

import math

import numpy as np

from firp.export.verify.rounding import YARDSTICKS, Distance, distance, judge, scaled_difference


def test_each_row_counts_by_its_own_magnitude():
    truth = [np.array([[20_000.0, 0.0], [0.0, 2.0]])]
    near = distance([np.array([[20_000.0, 0.2], [0.0, 2.0]])], truth)
    far = distance([np.array([[20_000.0, 0.0], [0.2, 2.0]])], truth)
    assert math.isclose(near.largest, 1e-5)
    assert math.isclose(far.largest, 0.1)
    assert math.isclose(near.norm, 1e-5 / math.sqrt(2))
    assert math.isclose(far.norm, 0.1 / math.sqrt(2))


def test_a_row_of_zeros_is_exact_or_wrong():
    zeros = [np.zeros((1, 2))]
    assert distance(zeros, zeros) == Distance(0, 0)
    assert distance([np.full((1, 2), 1e-3)], zeros).largest > 1e20


def test_the_worse_distance_is_judged_in_units_of_the_yardstick():
    yardstick = Distance(1e-6, 1e-5)
    check = judge("name", Distance(3e-6, 2e-5), yardstick, "float32")
    assert check.passed
    assert 2.8 < check.value < 3
    assert check.limit == YARDSTICKS
    assert not judge("name", Distance(3e-6, 5e-5), yardstick, "float32").passed
    assert not judge("name", Distance(5e-6, 1e-5), yardstick, "float32").passed


def test_an_exact_yardstick_leaves_room_for_a_few_roundings():
    exact = Distance(0, 0)
    assert judge("name", Distance(2**-23, 2**-23), exact, "float32").passed
    assert not judge("name", Distance(2**-21, 0), exact, "float32").passed


def test_nan_fails():
    nan, one = Distance(math.nan, math.nan), Distance(1e-6, 1e-6)
    assert not judge("name", nan, one, "float32").passed
    assert not judge("name", one, nan, "float32").passed
    assert math.isnan(distance([np.array([[math.nan, 1.0]])], [np.ones((1, 2))]).largest)


def test_values_are_scaled_by_their_row():
    theirs = np.array([[32_000.0, 1.0], [1.0, 1.0]])
    assert scaled_difference(theirs + np.array([[0, 0.1], [0, 0]]), theirs) < 1e-4
    assert scaled_difference(theirs + np.array([[0, 0], [0, 0.1]]), theirs) > 0.09
