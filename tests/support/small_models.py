"""Small random checkpoints of every family, and predictors for them, made in a second."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from firp.calib.training.heads import FirpPredictors
from firp.export.sources.open import open_checkpoint
from firp.export.weights.fingerprint import fingerprint

_SMALL = {
    "vocab_size": 193,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**_SMALL, tie_word_embeddings=True),
    "llama_untied_biases": LlamaConfig(
        **_SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=32
    ),
    "llama3_rope": LlamaConfig(**_SMALL, rope_parameters=LLAMA3_ROPE),
    "llama_linear_rope": LlamaConfig(
        **_SMALL, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "llama_yarn_rope": LlamaConfig(
        **_SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama_dynamic_rope": LlamaConfig(
        **_SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "mistral": MistralConfig(**_SMALL, sliding_window=None),
    "mistral_window": MistralConfig(**_SMALL, sliding_window=11),
    "qwen2": Qwen2Config(**_SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SMALL, head_dim=16, tie_word_embeddings=False),
}


def make_model(
    folder: Path,
    family: str,
    dtype: torch.dtype = torch.float32,
    changes: dict | None = None,
    **save_options,
) -> Path:
    """A random checkpoint whose logits differ clearly from token to token; biases and norms are
    random too. changes: fields of the family's configuration.
    """
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])
    for name, value in (changes or {}).items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder, **save_options)
    return folder


def make_predictors(folder: Path, model: Path, num_predictors: int = 3, prediction_layer: int = 2) -> Path:
    """Predictors near identity, so that drafts are sometimes right and often wrong."""
    checkpoint = open_checkpoint(model)
    torch.manual_seed(1)
    weight = FirpPredictors(num_predictors, checkpoint.config.hidden_size).weight.detach()
    folder.mkdir()
    save_file(
        {"predictors.weight": weight + torch.randn_like(weight) * 0.02}, folder / "predictors.safetensors"
    )
    info = {
        "format_version": 2,
        "method": "firp",
        "num_predictors": num_predictors,
        "prediction_layer": prediction_layer,
        "hidden_size": checkpoint.config.hidden_size,
        "correction_rank": 0,
        "model_name": model.name,
        "model_fingerprint": fingerprint(checkpoint),
        "training": {},
        "held_out": {"top1": [], "top3": [], "top5": [], "top10": [], "guesses": 0},
    }
    (folder / "predictors.json").write_text(json.dumps(info))
    return folder
