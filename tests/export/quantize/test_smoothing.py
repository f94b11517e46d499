"""Smoothing: it changes no product, and helps where a few channels are large."""

import numpy as np
import pytest
import torch
from support.small_models import make_model

from firp.export.quantize.decision import relative_error
from firp.export.quantize.formats import quantize, round_activations
from firp.export.quantize.smoothing import factors, norm_divisors, row_divisors
from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.precision import ROWS


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return open_checkpoint(make_model(tmp_path_factory.mktemp("model"), "llama")).config


@pytest.fixture
def rows():
    """Inputs [n, in] with two channels that are fifty times as large as the others."""
    made = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    made[:, [3, 40]] *= 50
    return made


@pytest.fixture
def weight():
    return np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)


def test_a_smoothed_product_is_the_product(config, rows, weight):
    found = factors(config, "layers.0.qkv_proj", torch.from_numpy(rows), torch.from_numpy(weight))
    np.testing.assert_allclose((rows / found) @ (weight * found).T, rows @ weight.T, rtol=2e-4, atol=1e-3)


def error(rows, weight, factor):
    rounded = round_activations(rows / factor, ROWS) @ quantize(weight * factor, ROWS).values().T
    return relative_error(rounded, rows @ weight.T)


@pytest.mark.parametrize("layer", ["layers.0.qkv_proj", "layers.1.down_proj", "lm_head"])
def test_it_is_a_third_of_the_error_of_large_channels(config, rows, weight, layer):
    found = factors(config, layer, torch.from_numpy(rows), torch.from_numpy(weight))
    assert error(rows, weight, found) < 0.33 * error(rows, weight, np.float32(1))


def test_it_is_less_than_that_of_smoothquant_where_values_differ_much(config, rows, weight):
    rows = rows**3
    found = factors(config, "layers.0.qkv_proj", torch.from_numpy(rows), torch.from_numpy(weight))
    half = np.sqrt(np.abs(rows).max(0) / np.abs(weight).max(0))  # its alpha of 0.5
    assert error(rows, weight, found) < 0.9 * error(rows, weight, half)


def test_an_input_that_is_always_zero_keeps_its_weight(config, rows, weight):
    rows[:, 5] = 0
    found = factors(config, "layers.0.qkv_proj", torch.from_numpy(rows), torch.from_numpy(weight))
    assert found[5] == 1
    assert np.isfinite(found).all()


def test_query_heads_that_share_a_value_share_its_factors(config):
    rng = np.random.default_rng(2)
    inputs, weights = (torch.from_numpy(rng.standard_normal((9, 64), np.float32)) for _ in range(2))
    heads = factors(config, "layers.0.o_proj", inputs, weights).reshape(2, 2, 16)  # [Hkv, group, Dh]
    assert (heads[:, 0] == heads[:, 1]).all()
    assert not (heads[0] == heads[1]).all()


def test_values_are_divided_where_they_are_made(config):
    factor = np.repeat(np.arange(1, 33, dtype=np.float32).reshape(2, 1, 16), 2, 1).reshape(-1)
    found = row_divisors(config, "layers.1.qkv_proj", {"layers.1.o_proj": factor})
    assert found.shape == (128,)
    assert (found[:96] == 1).all()
    assert (found[96:] == np.arange(1, 33)).all()


def test_up_rows_are_divided_and_gate_rows_are_not(config):
    factor = np.arange(1, 113, dtype=np.float32)
    found = row_divisors(config, "layers.1.gate_up_proj", {"layers.1.down_proj": factor})
    assert (found == np.concatenate((np.ones(112), factor))).all()


def test_layers_without_smoothing_divide_nothing(config):
    assert row_divisors(config, "layers.1.gate_up_proj", {}) is None
    assert row_divisors(config, "layers.1.down_proj", {"layers.1.down_proj": np.ones(112)}) is None
    assert norm_divisors("norm", {"layers.0.qkv_proj": np.ones(64)}) is None


def test_no_rows_are_not_smoothed(config, weight):
    assert (factors(config, "layers.0.qkv_proj", torch.empty(0, 64), torch.from_numpy(weight)) == 1).all()


def test_each_norm_divides_for_the_layer_after_it():
    smoothing = {"layers.0.qkv_proj": np.ones(2), "layers.0.gate_up_proj": np.zeros(2), "lm_head": np.ones(2)}
    assert norm_divisors("norm", smoothing) is smoothing["lm_head"]
    assert norm_divisors("layers.0.input_norm", smoothing) is smoothing["layers.0.qkv_proj"]
    assert norm_divisors("layers.0.mlp_norm", smoothing) is smoothing["layers.0.gate_up_proj"]
