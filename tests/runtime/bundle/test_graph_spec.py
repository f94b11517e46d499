"""Names, letters and layers of the declared graphs."""

import pytest

from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import CACHE_CONTRACTS, TensorSpec, cache_names, cached_layer, is_past


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
