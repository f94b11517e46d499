"""Sizes of pieces, by a machine whose times the tests make up."""

import itertools

import pytest

from firp.runtime.scheduling.pieces import FIRST, Pieces


def took(tokens, slots, fixed=30.0, token=5.0, slot=0.004, both=0.001):
    return fixed + token * tokens + slot * slots + both * tokens * slots


def test_the_first_piece_is_small():
    assert Pieces().most(4096, 1e9) == FIRST


@pytest.mark.parametrize(("slots", "budget"), [*itertools.product([64, 1024, 8192], [150.0, 400.0])])
def test_sizes_come_to_what_there_is_time_for_and_not_beyond(slots, budget):
    pieces, size, longest = Pieces(), FIRST, 0.0
    for _ in range(40):
        pieces.note(size, slots, took(size, slots))
        size = pieces.most(slots, budget)
        longest = max(longest, took(size, slots))
    assert longest <= budget + took(1, slots) - took(0, slots)
    assert took(size + 2, slots) > budget


def test_more_slots_and_less_time_are_met_with_care():
    pieces = Pieces()
    for size in (8, 20, 30):
        pieces.note(size, 512, took(size, 512))
    budget = took(30, 512)
    assert took(pieces.most(4096, budget), 4096) <= budget
    assert took(pieces.most(512, 0.6 * budget), 512) <= 0.6 * budget
    assert pieces.most(512, 0.1 * budget) == 0


def test_what_changed_is_measured_again():
    pieces = Pieces()
    pieces.note(20, 512, 100.0)
    for _ in range(6):
        pieces.note(20, 512, 300.0)
    assert pieces.most(512, 100.0) < 20
