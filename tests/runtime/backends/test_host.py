"""The mask of a pass, and memory that is not there."""

import numpy as np
import pytest

from firp.runtime.backends.host import HostMemory, attention_bias
from firp.runtime.errors import FirpError


@pytest.mark.parametrize(("window", "seen"), [(None, ["111010", "111011"]), (3, ["011010", "001011"])])
def test_a_row_sees_what_is_cached_and_its_ancestors(window, seen):
    """Three cached tokens, an empty slot, two rows."""
    out = np.full((2, 6), 7.0, np.float32)
    attention_bias(np.tri(2, dtype=bool), np.array([3, 4]), 3, 4, window, out)
    assert ["".join(str(int(value == 0)) for value in row) for row in out] == seen
    assert set(out[out != 0]) == {np.finfo(np.float32).min}


def test_columns_after_the_rows_of_a_pass_are_hidden():
    out = np.full((2, 7), 7.0, np.float32)
    attention_bias(np.tri(2, dtype=bool), np.array([3, 4]), 3, 3, None, out)
    assert ["".join(str(int(value == 0)) for value in row) for row in out] == ["1111000", "1111100"]


@pytest.mark.parametrize("size", [1 << 58, 1 << 62])
def test_memory_that_is_not_there_is_an_error_that_says_for_what(size):
    with pytest.raises(FirpError, match="not enough memory for keys and values"):
        HostMemory().zeros((size,), np.float32, "keys and values")
