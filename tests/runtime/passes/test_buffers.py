"""Bindings of passes whose sizes come again are kept."""

import pytest

from firp.runtime.backends.host import HostMemory
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import IN_PLACE, PREFIX
from firp.runtime.passes import buffers
from firp.runtime.passes.buffers import ONE, Buffers, HalfKey, Hidden, PredictorsKey
from firp.runtime.passes.cache_view import Seen
from firp.runtime.passes.pass_shape import BatchSize


@pytest.fixture
def make(family_bundle):
    manifest = load_bundle(family_bundle("llama")[1]).manifest

    def make(contract=PREFIX):
        return Buffers(manifest, contract, HostMemory(), BatchSize(10, 8, 6), top_k=4)

    return make


def lower(rows):
    return HalfKey("lower", (Seen(range(5), 5 + rows),), Hidden.LOWER, rows)


def test_a_pass_that_comes_again_has_the_same_binding(make):
    made = make()
    first = made.binding(lower(2), recurs=True)
    assert made.binding(lower(2), recurs=True) is first
    assert first.repeats
    assert made.binding(lower(3), recurs=True) is not first
    assert made.kept_bindings == 2


def test_a_pass_that_does_not_come_again_is_not_kept(make):
    made = make()
    assert not made.binding(lower(2), recurs=False).repeats
    assert made.kept_bindings == 0


def test_bindings_of_buffers_that_have_grown_are_dropped(make):
    made = make(IN_PLACE)
    made.kv.reserve(ONE, 4)
    before = made.binding(HalfKey("lower", (Seen(range(64), 64),), Hidden.LOWER, 2), recurs=True)
    made.binding(PredictorsKey(Hidden.LOWER, 2, 2), recurs=True)
    made.binding(HalfKey("lower", (Seen(range(128), 128),), Hidden.LOWER, 2), recurs=True)
    assert made.kept_bindings == 2  # the predictors' one has nothing to do with the cache
    assert made.binding(HalfKey("lower", (Seen(range(64), 64),), Hidden.LOWER, 2), recurs=True) is not before


@pytest.mark.parametrize(("by_row", "queries", "repeats"), [(False, 4, 1), (True, -1, 4)])
def test_rows_attend_as_they_are_or_one_by_one(make, by_row, queries, repeats):
    """The model has four heads of queries."""
    made = make(IN_PLACE)
    made.kv.reserve(ONE, 3)
    key = HalfKey("lower", (Seen(range(64), 64),), Hidden.LOWER, 3, by_row=by_row)
    inputs = made.binding(key, recurs=True).inputs
    assert inputs["query_shape"][1] == queries
    assert inputs["bias_repeats"].tolist() == [1, repeats, 1, 1]


def test_a_graph_in_place_reads_and_writes_one_address(make):
    made = make(IN_PLACE)
    made.kv.reserve(ONE, 2)
    binding = made.binding(HalfKey("lower", (Seen(range(64), 64),), Hidden.LOWER, 2), recurs=True)
    assert binding.inputs["past_key.1"].shape == (1, 2, 64, 16)
    assert binding.inputs["past_key.1"].ctypes.data == binding.outputs["present_key.1"].ctypes.data


def test_no_more_bindings_are_kept_than_allowed(make, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_BINDINGS", 2)
    made = make()
    for rows in (1, 2, 3):
        made.binding(lower(rows), recurs=True)
    assert made.kept_bindings == 2


def test_a_binding_has_the_sizes_of_its_pass(make):
    made = make()
    upper = made.binding(HalfKey("upper", (Seen(range(5), 12),), Hidden.EXTENDED, 7, 3, 2), recurs=True)
    assert upper.inputs["attention_bias"].shape == (1, 1, 7, 5 + 7)
    assert upper.inputs["hidden_states"].shape == (1, 7, 64)
    assert upper.outputs["logits"].shape == (1, 3, 193)
    assert upper.outputs["draft_ids"].shape == (1, 2, 4)
    assert upper.inputs["past_key.2"].shape == (5, 1, 2, 16)
    assert upper.outputs["new_key.2"].shape == (7, 1, 2, 16)
    assert "past_key.1" not in upper.inputs  # a layer of the lower half


def test_predictors_add_their_pseudo_rows_after_all_rows(make):
    made = make()
    binding = made.binding(PredictorsKey(Hidden.LOWER, 2, 2), recurs=True)
    assert binding.inputs["hidden_states"].shape == (1, 2, 64)
    assert binding.outputs["hidden_states_out"].shape == (1, 2 + 2 * 3, 64)
