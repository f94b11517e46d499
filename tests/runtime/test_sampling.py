"""Sampling parameters are checked, and converted, field by field."""

import dataclasses

import numpy as np
import pytest

from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"stop": ("",)},
        {"stop": "text"},
    ],
)
def test_impossible_params_are_refused(bad):
    with pytest.raises(FirpError, match=f"bad {next(iter(bad))}"):
        SamplingParams(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 2.0}, {"max_new_tokens": True}, {"max_new_tokens": float("inf")},
        {"max_new_tokens": "3"}, {"max_new_tokens": None}, {"top_k": 1.5}, {"top_k": np.float32(2)},
        {"top_k": float("inf")}, {"seed": 1.5}, {"seed": False}, {"temperature": True}, {"temperature": "1"},
        {"temperature": 10**400}, {"temperature": None}, {"temperature": 1j}, {"top_p": float("nan")},
        {"top_p": [1]}, {"stop": (1,)}, {"stop": {"a"}}, {"stop": None}, {"stop": ["a", b"b"]},
        {"stop": ("x" * 10_001,)}, {"stop": ("x" * 10,) * 1001}, {"ignore_eos": 1}, {"ignore_eos": "no"},
    ],
)  # fmt: skip
def test_params_of_a_wrong_type_are_refused(bad):
    with pytest.raises(FirpError, match=f"bad {next(iter(bad))}") as caught:
        SamplingParams(**bad)
    assert len(str(caught.value)) < 300


def test_numbers_of_numpy_become_python_s():
    params = SamplingParams(np.uint8(250), np.float32(0.5), np.int8(120), np.float64(1), np.uint64(7), ["a"])
    assert params == SamplingParams(250, 0.5, 120, 1.0, 7, ("a",))
    assert params.max_new_tokens + 20 == 270  # uint8 would wrap
    kinds = [type(value) for value in dataclasses.astuple(params)]
    assert kinds[:7] == [int, float, int, float, int, tuple, bool]
