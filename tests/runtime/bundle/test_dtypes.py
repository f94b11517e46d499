"""The table of dtypes against the libraries whose names and numbers it holds."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from firp.runtime.bundle.dtypes import DTYPES, MODEL_DTYPES, lowest, to_float32, to_storage

NUMPY = {"bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("name", DTYPES)
def test_names_and_numbers_are_those_of_onnx(name):
    row = DTYPES[name]
    assert onnx.TensorProto.DataType.Name(row.onnx_number) == row.onnx
    assert helper.tensor_dtype_to_np_dtype(row.onnx_number) == NUMPY.get(name, row.storage)


@pytest.mark.parametrize("name", MODEL_DTYPES)
def test_the_lowest_value_is_that_of_the_type(name):
    row = DTYPES[name]
    kind = NUMPY.get(name, row.storage)
    assert lowest(row.storage).view(kind) == ml_dtypes.finfo(kind).min


@pytest.mark.parametrize("name", MODEL_DTYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_the_exponent_bits_are_set_in_what_is_not_finite(name, value):
    row = DTYPES[name]
    stored = np.array([value], NUMPY.get(name, row.storage)).view(f"u{row.itemsize}")
    assert (stored & row.exponent == row.exponent).all()
    assert lowest(row.storage).view(f"u{row.itemsize}") & row.exponent != row.exponent


@pytest.mark.parametrize("name", MODEL_DTYPES)
def test_values_that_a_type_holds_survive_storage(name):
    values = np.array([0, 1, -2.5, 96], np.float32)
    stored = to_storage(values, DTYPES[name].storage)
    assert stored.dtype == DTYPES[name].storage
    np.testing.assert_array_equal(to_float32(stored), values)
