"""The weight table against the weight file that a bundle holds."""

import pytest
from safetensors import safe_open

from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.weight_table import rope_names, weight_shapes


@pytest.mark.parametrize("family", ["llama", "llama_untied_biases", "qwen2", "qwen3"])
def test_the_file_holds_the_table_and_the_rope_tables(family_bundle, family):
    bundle = load_bundle(family_bundle(family)[1])
    with safe_open(bundle.path / "model.safetensors", "np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    tables = [stored.pop(name) for name in rope_names("default")]
    assert stored == weight_shapes(bundle.manifest.model)
    assert {table[1] for table in tables} == {bundle.manifest.model.attention.head_dim // 2}
