"""Fields of a configuration that no graph can follow: a line names each."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import CHANGES, save_family

from firp.export.sources.open import open_checkpoint
from firp.runtime.errors import CheckpointError

_CHUNKED = {"layer_types": ["chunked_attention", "full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 0}, "bad num_experts_per_tok.*got 0"),
        ("deepseek_v3", {"num_experts_per_tok": 0}, "bad num_experts_per_tok.*got 0"),
        ("hunyuan_v1_moe", {"moe_topk": []}, "unsupported moe_topk"),
        ("granite", {"logits_scaling": 0}, "bad logits_scaling in .*above 0"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "bad decoder_sparse_step in .*got 0"),
        ("smollm3", {"no_rope_layers": [1]}, "bad no_rope_layers in .*list of 3"),
        ("cohere", {"logit_scale": None}, "unsupported logit_scale.*null"),
        (
            "deepseek_v3",
            {"rope_parameters": CHANGES["deepseek_v2"]["rope_parameters"] | {"mscale_all_dim": "x"}},
            "bad mscale_all_dim of rope_parameters in ",
        ),
        ("gemma3_text", _CHUNKED, "unsupported kind of layer.*chunked_attention"),
        ("cohere_compass_text", _CHUNKED, "unsupported kind of layer.*chunked_attention"),
    ],
)
def test_a_field_that_no_graph_follows_is_named(model_type, changes, message, tmp_path):
    file = save_family(tmp_path, model_type) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "head", "embedding"),
    [
        ("gpt_neox", "embed_out.weight", "gpt_neox.embed_in.weight"),
        ("biogpt", "output_projection.weight", "biogpt.embed_tokens.weight"),
    ],
)
def test_a_tied_head_is_known_by_its_familys_name(model_type, head, embedding, tmp_path):
    save_family(tmp_path, model_type, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {head: tensors[embedding].clone()}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).config.tie_word_embeddings
    save_file(tensors | {head: torch.zeros_like(tensors[embedding])}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tie_word_embeddings is true but {head} differs"):
        open_checkpoint(tmp_path)
