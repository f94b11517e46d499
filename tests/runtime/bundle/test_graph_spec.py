"""Names, letters and layers of the declared graphs."""

import pytest
from support.family_models import save_family

from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import (
    CACHE_CONTRACTS,
    IN_PLACE,
    PREFIX,
    TensorSpec,
    cache_names,
    cached_layer,
    graph_specs,
    is_past,
)
from firp.runtime.bundle.precision import Precision


def test_letters_and_sums_of_letters_are_replaced():
    spec = TensorSpec("attention_bias", "float32", ("B", 1, "T", "P+T"))
    assert spec.sizes({"B": 2, "T": 5, "P": 30}) == (2, 1, 5, 35)


@pytest.mark.parametrize("contract", CACHE_CONTRACTS)
def test_names_of_the_cache_are_read_back(contract):
    for names in cache_names([12], contract, ("key", "value", "latent")):
        assert cached_layer(names.past) == 12
        assert cached_layer(names.new) == 12
        assert is_past(names.past)
        assert not is_past(names.new)


@pytest.mark.parametrize("name", ["position_ids", "past_keys", "layers.3.out", "new_keynote.3"])
def test_other_names_are_not_of_the_cache(name):
    assert cached_layer(name) is None
    assert not is_past(name)


@pytest.mark.parametrize("contract", CACHE_CONTRACTS)
def test_the_halves_hold_every_layer_once(contract, family_bundle):
    manifest = load_bundle(family_bundle("llama")[1]).manifest
    found = [layer for graph in manifest.graphs for layer in manifest.layers(graph)]
    assert sorted(found) == list(range(manifest.model.num_hidden_layers))
    for graph, spec in manifest.graphs_for(contract).items():
        names = cache_names(manifest.layers(graph), contract, manifest.model.attention.cached)
        assert [tensor.name for tensor in spec.past] == [name.past for name in names]
        assert [tensor.name for tensor in spec.new] == [name.new for name in names]
        assert (spec.cache is None) == (graph == "predictors")


def test_layers_with_a_window_have_slots_of_their_own(tmp_path):
    """Of the prefix contract; in place, a buffer has all slots of every layer."""
    config = open_checkpoint(save_family(tmp_path / "model", "cwm")).config
    precision = Precision("float32", "float32", "float32")
    specs = [graph_specs(config, 2, 0, precision, contract) for contract in (PREFIX, IN_PLACE)]
    prefix, in_place = ({tensor.name: tensor.shape for tensor in each["lower"].inputs} for each in specs)
    assert prefix["past_key.0"][0] == prefix["past_value.0"][0] == "W"
    assert prefix["past_key.1"][0] == "P"
    assert (prefix["attention_bias"][3], prefix["attention_bias_window"][3]) == ("P+T", "W+T")
    assert in_place["past_key.0"] == in_place["past_key.1"]
    assert in_place["attention_bias"] == in_place["attention_bias_window"]
    assert "attention_bias" not in {tensor.name for tensor in specs[0]["upper"].inputs}
