"""Names of tensors in files: those of a model without its head, and buffers that are no weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import save_family

from firp.export.sources.open import open_checkpoint
from firp.export.weights.stream import read_array
from firp.runtime.errors import CheckpointError


def renamed(folder, change):
    """A checkpoint whose tensors are changed."""
    model = save_family(folder, "llama", tie_word_embeddings=True)
    before = open_checkpoint(model)
    values = {each.name: read_array(each, before.tensors).copy() for each in before.weights}
    file = model / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return model, values


def test_a_model_without_its_head_lacks_the_prefix(tmp_path):
    def bare(tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    model, values = renamed(tmp_path / "model", bare)
    found = open_checkpoint(model)
    assert {each.name for each in found.weights} == set(values)
    for each in found.weights:
        assert (read_array(each, found.tensors) == values[each.name]).all()


@pytest.mark.parametrize(("name", "known"), [("rotary_emb.inv_freq", True), ("other_proj.weight", False)])
def test_only_buffers_that_are_known_are_left_out(name, known, tmp_path):
    def beside(tensors):
        return tensors | {f"model.layers.0.self_attn.{name}": torch.ones(4)}

    model, values = renamed(tmp_path / "model", beside)
    if known:
        assert len(open_checkpoint(model).weights) == len(values)
    else:
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(model)
