"""Architectures of GGUF files: what Hugging Face calls them, and what they say beside the usual.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json. A
row is what llama.cpp's converter writes of that family.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from firp.export.sources.gguf.metadata import Metadata

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"
_ROPE_SIZE = "rope.dimension_count"
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Of every so many layers the last has another kind; llama.cpp knows it, its files do not say it
_PERIOD = 4
_LOCAL_ROPE_BASE = 10000.0  # of Gemma 3's layers with a window, where a file says nothing
# Models whose queries are scaled by what heads would have of the hidden size; files do not say it
_GEMMA_27B_LAYERS = (46, 62)
_STARCODER2_WINDOW = 4096  # of every layer of every StarCoder 2; files do not say it

Tensors = Mapping[str, Any]
Fields = dict[str, Any]
_Further = Callable[[Metadata, Tensors, Fields], Fields]


def _rms(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {"rms_norm_eps": data.number("attention.layer_norm_rms_epsilon")}


def _epsilon(data: Metadata) -> float:
    """Of layer norms."""
    return data.number("attention.layer_norm_epsilon")


def _experts(data: Metadata, tensors: Tensors) -> int:
    """How many there are: nothing is made of a number that no tensor has."""
    router = tensors.get("blk.0.ffn_gate_inp.weight")
    rows = router.shape[0] if router and router.shape[1:] == (data.integer("embedding_length"),) else 0
    if data.integer("expert_count") != rows:
        raise data.bad("expert_count", data.integer("expert_count"), f"{rows}, the rows of the router")
    return rows


def _kinds(data: Metadata, c: Fields, period: int) -> list[str]:
    """The kind of each layer: as a file says it, or every so many layers one without a window."""
    layers = c["num_hidden_layers"]
    windowed = data.flags(_PATTERN, [(index + 1) % period != 0 for index in range(layers)])
    if len(windowed) != layers:
        raise data.bad(_PATTERN, len(windowed), f"{layers}, one of each layer")
    return [_SLIDING if each else _FULL for each in windowed]


def _mistral(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {"sliding_window": data.integer(_WINDOW)}


def _mixtral(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {
        "num_local_experts": _experts(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "sliding_window": data.integer(_WINDOW) if data.has(_WINDOW) else None,
    }


def _granite(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {
        "attention_multiplier": data.number("attention.scale"),
        "embedding_multiplier": data.number("embedding_scale"),
        "residual_multiplier": data.number("residual_scale"),
        "logits_scaling": data.number("logit_scale"),
    }


def _smollm3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {"no_rope_layer_interval": _PERIOD, "use_sliding_window": False}


def _cohere(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": _epsilon(data),
        "logit_scale": data.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    }


def _cohere2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _cohere(data, tensors, c) | {
        "sliding_window": data.integer(_WINDOW),
        "sliding_window_pattern": _PERIOD,
    }


def _qwen_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {
        "num_experts": _experts(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "moe_intermediate_size": data.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    size = data.integer("expert_shared_feed_forward_length")
    return _qwen_moe(data, tensors, c) | {
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": size,
        "qkv_bias": c["attention_bias"],
    }


def _olmoe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {
        "num_experts": _experts(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "norm_topk_prob": False,
    }


def _olmo(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    if _epsilon(data) != 1e-5:
        raise data.bad("attention.layer_norm_epsilon", _epsilon(data), "1e-05")
    clip = "attention.clamp_kqv"
    return {"clip_qkv": data.number(clip) if data.has(clip) else None}


def _olmo3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    theta = c["rope_parameters"]["rope_theta"]
    windowed = {"rope_type": "default", "rope_theta": data.number("rope.freq_base_swa", theta)}
    return _mistral(data, tensors, c) | {
        "layer_types": _kinds(data, c, _PERIOD),
        "rope_parameters": {_SLIDING: windowed, _FULL: c["rope_parameters"]},
    }


def _gemma(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")


def _gemma2(data: Metadata, tensors: Tensors, c: Fields, period: int = 2) -> Fields:
    cap = "final_logit_softcapping"
    scalar = c["head_dim"]
    if c["num_hidden_layers"] in _GEMMA_27B_LAYERS:
        scalar = c["hidden_size"] // c["num_attention_heads"]
    return _gemma(data, tensors, c) | {
        "final_logit_softcapping": data.number(cap) if data.has(cap) else None,
        "query_pre_attn_scalar": scalar,
        "sliding_window": data.integer(_WINDOW),
        "layer_types": _kinds(data, c, period),
    }


def _gemma2_capped(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    cap = data.number("attn_logit_softcapping")
    return _gemma2(data, tensors, c) | {"attn_logit_softcapping": cap}


def _gemma3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    windowed = {"rope_type": "default", "rope_theta": data.number("rope.freq_base_swa", _LOCAL_ROPE_BASE)}
    return _gemma2(data, tensors, c, period=6) | {
        "rope_parameters": {_SLIDING: windowed, _FULL: c["rope_parameters"]},
    }


def _phi(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {"layer_norm_eps": _epsilon(data), "hidden_act": "gelu_new", "qk_layernorm": False}


def _phi3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    original = data.integer("rope.scaling.original_context_length")
    parameters = c["rope_parameters"]
    if parameters["rope_type"] == "longrope":
        parameters = parameters | {"original_max_position_embeddings": original}
    return _rms(data, tensors, c) | {
        "original_max_position_embeddings": original,
        "rope_parameters": parameters,
        "sliding_window": data.integer(_WINDOW, 0, least=0) or None,
    }


def _starcoder2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "norm_epsilon": _epsilon(data),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": c["attention_bias"],
        "sliding_window": None,
        "max_position_embeddings": min(c["max_position_embeddings"], _STARCODER2_WINDOW),
    }


def _seed_oss(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {"attention_out_bias": "blk.0.attn_output.bias" in tensors}


def _arcee(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {"hidden_act": "relu2", "mlp_bias": "blk.0.ffn_up.bias" in tensors}


def _ernie(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _rms(data, tensors, c) | {"use_bias": c["attention_bias"]}


def _nemotron(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {"norm_eps": _epsilon(data), "hidden_act": "relu2"}


def _stablelm(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": _epsilon(data),
        "use_parallel_residual": data.flag("use_parallel_residual"),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_qkv_bias": c["attention_bias"],
    }


class GgufArchitecture(NamedTuple):
    """One of them."""

    model_type: str
    further: _Further = _rms  # the fields that not all have
    paired: bool = False  # the converter moved rows of queries and keys: see `renamed`
    one_more: bool = False  # the converter added 1 to the weights of norms
    partial: bool = False  # some features of a head may not be turned


ARCHITECTURES = {
    "llama": GgufArchitecture("llama", paired=True),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3"),
    "qwen2moe": GgufArchitecture("qwen2_moe", _qwen2_moe),
    "qwen3moe": GgufArchitecture("qwen3_moe", _qwen_moe),
    "granite": GgufArchitecture("granite", _granite, paired=True),
    "smollm3": GgufArchitecture("smollm3", _smollm3, paired=True),
    "command-r": GgufArchitecture("cohere", _cohere),
    "cohere2": GgufArchitecture("cohere2", _cohere2),
    "gemma": GgufArchitecture("gemma", _gemma, one_more=True),
    "gemma2": GgufArchitecture("gemma2", _gemma2_capped, one_more=True),
    "gemma3": GgufArchitecture("gemma3_text", _gemma3, one_more=True),
    "olmo": GgufArchitecture("olmo", _olmo, paired=True),
    "olmo2": GgufArchitecture("olmo2"),
    "olmoe": GgufArchitecture("olmoe", _olmoe),
    "phi2": GgufArchitecture("phi", _phi, partial=True),
    "phi3": GgufArchitecture("phi3", _phi3, partial=True),
    "starcoder2": GgufArchitecture("starcoder2", _starcoder2),
    "stablelm": GgufArchitecture("stablelm", _stablelm, partial=True),
    "nemotron": GgufArchitecture("nemotron", _nemotron, one_more=True, partial=True),
    "glm4": GgufArchitecture("glm4", partial=True),
    "seed_oss": GgufArchitecture("seed_oss", _seed_oss),
    "arcee": GgufArchitecture("arcee", _arcee, paired=True),
    "ernie4_5": GgufArchitecture("ernie4_5", _ernie),
    "hunyuan-dense": GgufArchitecture("hunyuan_v1_dense"),
}
# of files that call themselves another's: the architecture, and a key that they have beside it
_OTHERS = {
    ("llama", "expert_count"): GgufArchitecture("mixtral", _mixtral, paired=True),
    ("llama", _WINDOW): GgufArchitecture("mistral", _mistral, paired=True),
    ("olmo2", _WINDOW): GgufArchitecture("olmo3", _olmo3),
}
MODEL_TYPES = {row.model_type for row in (*ARCHITECTURES.values(), *_OTHERS.values())}


def architecture_of(data: Metadata) -> GgufArchitecture:
    """The row of a file; Mistral's files call themselves Llama's, and have a window."""
    for (architecture, key), row in _OTHERS.items():
        if data.architecture == architecture and data.says(key):
            return row
    return ARCHITECTURES[data.architecture]
