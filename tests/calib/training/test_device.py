"""Threads that torch uses: as many as the work is worth, and no trace of it afterwards."""

import pytest
import torch

from firp.calib.training.device import threads_for, worthwhile_threads


@pytest.mark.parametrize(
    ("rows", "hidden_size", "most", "threads"),
    [
        (96, 256, 2, 1),  # the small steps of these tests
        (16, 256, 64, 1),  # decoding of a small model, in a batch
        (1536, 256, 2, 2),  # the demo model with the default options
        (1536, 256, 64, 4),
        (1536, 4096, 64, 64),
        (1, 64, 1, 1),
    ],
)
def test_threads_are_those_whose_work_is_worth_waking_them(rows, hidden_size, most, threads):
    assert worthwhile_threads(rows, hidden_size, most) == threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_small_work_gets_one_thread_and_afterwards_there_are_as_many_as_before(four_threads):
    with threads_for(16, 256):
        inside = torch.get_num_threads()
    assert inside == 1
    assert torch.get_num_threads() == 4


def test_threads_come_back_after_an_error(four_threads):
    with pytest.raises(ZeroDivisionError), threads_for(16, 256):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


def test_nobody_gets_more_threads_than_the_caller_had(four_threads):
    with threads_for(1536, 256):
        torch.set_num_threads(1)
        with threads_for(10**6, 4096):
            inside = torch.get_num_threads()
    assert inside == 1
