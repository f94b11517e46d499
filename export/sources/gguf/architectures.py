"""Architectures of GGUF files: what Hugging Face calls them, and what they say beside the usual.

In: the keys of a file, and its tensors. Out: fields of config.json. A row is what llama.cpp's converter
writes of that family.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from firp.export.sources.gguf.metadata import Metadata

_WINDOW = "attention.sliding_window"
# Of every so many layers the last has another kind; llama.cpp knows it, its files do not say it
_PERIOD = 4
_Further = Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]


def _rms(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {"rms_norm_eps": data.number("attention.layer_norm_rms_epsilon")}


def _mistral(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return _rms(data, tensors) | {"sliding_window": data.integer(_WINDOW)}


def _granite(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return _rms(data, tensors) | {
        "attention_multiplier": data.number("attention.scale"),
        "embedding_multiplier": data.number("embedding_scale"),
        "residual_multiplier": data.number("residual_scale"),
        "logits_scaling": data.number("logit_scale"),
    }


def _smollm3(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return _rms(data, tensors) | {"no_rope_layer_interval": _PERIOD, "use_sliding_window": False}


def _cohere(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer_norm_eps": data.number("attention.layer_norm_epsilon"),
        "logit_scale": data.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    }


def _cohere2(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return _cohere(data, tensors) | {
        "sliding_window": data.integer(_WINDOW),
        "sliding_window_pattern": _PERIOD,
    }


def _qwen3_moe(data: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    router = tensors.get("blk.0.ffn_gate_inp.weight")
    rows = router.shape[0] if router and router.shape[1:] == (data.integer("embedding_length"),) else 0
    if data.integer("expert_count") != rows:
        raise data.bad("expert_count", data.integer("expert_count"), f"{rows}, the rows of the router")
    return _rms(data, tensors) | {
        "num_experts": data.integer("expert_count"),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "moe_intermediate_size": data.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


class GgufArchitecture(NamedTuple):
    """One of them."""

    model_type: str
    class_name: str
    further: _Further = _rms  # the fields that not all have
    paired: bool = False  # the converter moved rows of queries and keys: see `renamed`


ARCHITECTURES = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", paired=True),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": GgufArchitecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "granite": GgufArchitecture("granite", "GraniteForCausalLM", _granite, paired=True),
    "smollm3": GgufArchitecture("smollm3", "SmolLM3ForCausalLM", _smollm3, paired=True),
    "command-r": GgufArchitecture("cohere", "CohereForCausalLM", _cohere),
    "cohere2": GgufArchitecture("cohere2", "Cohere2ForCausalLM", _cohere2),
}
_MISTRAL = GgufArchitecture("mistral", "MistralForCausalLM", _mistral, paired=True)
MODEL_TYPES = {row.model_type for row in (*ARCHITECTURES.values(), _MISTRAL)}
PAIRED = {row.model_type for row in (*ARCHITECTURES.values(), _MISTRAL) if row.paired}


def architecture_of(data: Metadata) -> GgufArchitecture:
    """The row of a file; Mistral's files call themselves Llama's, and have a window."""
    if data.architecture == "llama" and data.has(_WINDOW):
        return _MISTRAL
    return ARCHITECTURES[data.architecture]
