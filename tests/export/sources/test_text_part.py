"""Checkpoints of models for images and sounds: their text part is exported as the model that it is, and
nothing of it goes unused.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import save_family
from support.wrapped_models import save_wrapped

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.weights.torch_model import torch_model
from firp.runtime.errors import CheckpointError


def edit_config(model, **changes):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


@pytest.mark.parametrize(
    ("model_type", "text"), [("gemma3", "gemma3_text"), ("mistral3", "ministral3"), ("smolvlm", "llama")]
)
def test_a_text_part_says_what_the_whole_model_says(model_type, text, tmp_path):
    whole = save_wrapped(tmp_path / "model", model_type, text)
    ids = torch.tensor([[7, 40, 3, 22, 51, 9, 30, 14]])
    with torch.no_grad():
        part = torch_model(open_checkpoint(tmp_path / "model"), torch.float32)(input_ids=ids).logits
        assert torch.equal(part, whole(input_ids=ids).logits)
    export_bundle(ExportOptions(tmp_path / "model", tmp_path / "bundle"))
    assert verify(tmp_path / "bundle", tmp_path / "model").passed


def test_a_tensor_of_the_text_part_that_nobody_uses_is_named(tmp_path):
    save_wrapped(tmp_path, "mistral3", "ministral3")
    name = "language_model.model.layers.0.self_attn.sinks"
    edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.zeros(4)}))
    with pytest.raises(CheckpointError, match=r"1 tensors .*does not use.*layers\.0\.self_attn\.sinks"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "family", "architecture"),
    [("kimi_k2", "deepseek_v3", "DeepseekV3ForCausalLM"), ("gpt-sw3", "gpt2", "GPT2LMHeadModel")],
)
def test_a_name_that_is_another_familys_is_read_as_that(name, family, architecture, tmp_path):
    config = open_checkpoint(save_family(tmp_path, family)).config
    edit_config(tmp_path, model_type=name, architectures=[architecture])
    assert open_checkpoint(tmp_path).config == config


@pytest.mark.parametrize("tied", [True, False])
def test_weights_say_whether_a_head_is_tied_where_the_configuration_does_not(tied, tmp_path):
    save_wrapped(tmp_path, "mistral3", "ministral3", tie_word_embeddings=tied)
    given = json.loads((tmp_path / "config.json").read_text())
    del given["text_config"]["tie_word_embeddings"], given["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(given))
    assert open_checkpoint(tmp_path).config.tie_word_embeddings == tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Mistral3ForSequenceClassification"]},
            "architecture and model_type disagree.*ForSequenceClassification",
        ),
        ({"text_config": {"model_type": "lfm2"}}, "'lfm2' .'text_config of mistral3'.*a recurrent state"),
        ({"text_config": {"model_type": "none"}}, "bad model configuration.*none"),
        ({"model_type": "paligemma"}, "'paligemma'.*inputs that are no text"),
        ({"text_config": None}, "bad text_config in .*got None.*that of a text model"),
    ],
)
def test_what_is_no_text_part_is_refused(changes, message, tmp_path):
    save_wrapped(tmp_path, "mistral3", "ministral3")
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
