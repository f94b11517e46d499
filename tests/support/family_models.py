"""Random tiny models of every family: their configurations, easy and adversarial ones, drawn from a seed.

In: a model_type and a seed. Out: a checkpoint as transformers saves it.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_NO_PAIRS = {"num_key_value_heads": None}  # of families whose heads have keys of their own
_WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT2 = _NO_PAIRS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96, "n_inner": 40}
_SCALES = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
_CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# what a family's configuration calls otherwise, or has besides
CHANGES: dict[str, dict[str, Any]] = {
    "cwm": _WINDOWS,
    "ministral": _WINDOWS | {"rope_parameters": _ROPE, "head_dim": 8},
    "gemma": {"head_dim": 12},
    "gemma2": _WINDOWS | _CAPS | {"head_dim": 12},
    "vaultgemma": _WINDOWS | _CAPS | {"head_dim": 12},
    "gemma3_text": _WINDOWS
    | {"head_dim": 12, "query_pre_attn_scalar": 12}
    | {
        "rope_parameters": {
            "sliding_attention": _ROPE,
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        }
    },
    "olmo": {"clip_qkv": 0.5},
    "olmo3": _WINDOWS,
    "granite": _SCALES,
    "granitemoehybrid": _SCALES
    | {
        "num_local_experts": 0,
        "shared_intermediate_size": 40,
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 4,
    },
    "hyperclovax": _SCALES | {"use_post_norm": True},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": _WINDOWS | {"logit_scale": 0.25},
    "stablelm": {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "exaone4": _WINDOWS,
    "hunyuan_v1_dense": {"head_dim": 8},
    "helium": {"head_dim": 8},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _NO_PAIRS
    | {
        "num_layers": 3,
        "num_heads": 4,
        "window_size": 5,
        "attention_types": [[["global", "local", "global"], 1]],
    },
    "gpt_neox": _NO_PAIRS | {"rotary_pct": 0.25, "head_dim": None},
    "gptj": _GPT2 | {"rotary_dim": 4},
    "codegen": _GPT2 | {"rotary_dim": 4},
    "phi": {"qk_layernorm": True},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 40},
    "opt": _NO_PAIRS | {"ffn_dim": 40, "word_embed_proj_dim": 32},
    "bloom": _NO_PAIRS | {"n_layer": 3, "n_head": 4, "seq_length": 96},
    "mpt": _NO_PAIRS | {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 96},
    "persimmon": _NO_PAIRS,
    "apertus": {},
}


def family_config(model_type: str, **changes: Any) -> Any:
    """The configuration of a tiny model."""
    fields = _SIZES | CHANGES.get(model_type, {}) | changes
    return CONFIG_MAPPING[model_type](**{name: value for name, value in fields.items() if value is not None})


def save_family(folder: Path, model_type: str, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint; biases, norms and other vectors are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(model_type, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder
