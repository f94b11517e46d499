"""Dense families with gated MLPs.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json.
"""

from firp.export.sources.gguf.fields.common import (
    FULL,
    PERIOD,
    SHARED_SIZE,
    SLIDING,
    WINDOW,
    Fields,
    Tensors,
    epsilon,
    kinds,
    optional,
    rms,
    same,
)
from firp.export.sources.gguf.metadata import Metadata

_LOCAL_ROPE_BASE = 10000.0  # of Gemma 3's layers with a window, where a file says nothing
# Models whose queries are scaled by what heads would have of the hidden size; files do not say it
_GEMMA_27B_LAYERS = (46, 62)
# of Granite 4, whose converter writes them of models that have no such layers too
_STATE_SPACE = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")


def mistral(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"sliding_window": data.integer(WINDOW)}


def granite(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    if not data.flag("rope.scaling.finetuned", True):
        raise data.bad("rope.scaling.finetuned", False, "true: positions are turned")
    data.ignore(*(f"ssm.{each}" for each in _STATE_SPACE))
    return rms(data, tensors, c) | {
        "attention_multiplier": data.number("attention.scale"),
        "embedding_multiplier": data.number("embedding_scale"),
        "residual_multiplier": data.number("residual_scale"),
        "logits_scaling": data.number("logit_scale"),
    }


def dense_granite(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    same(data, SHARED_SIZE, c["intermediate_size"])  # that of Granite 4, which has no other MLP
    return granite(data, tensors, c)


def smollm3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"no_rope_layer_interval": PERIOD, "use_sliding_window": False}


def cohere(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": epsilon(data),
        "logit_scale": data.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    }


def cohere2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return cohere(data, tensors, c) | {
        "sliding_window": data.integer(WINDOW),
        "sliding_window_pattern": PERIOD,
    }


def olmo(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    if epsilon(data) != 1e-5:
        raise data.bad("attention.layer_norm_epsilon", epsilon(data), "1e-05")
    return {"clip_qkv": optional(data, "attention.clamp_kqv")}


def olmo3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    theta = c["rope_parameters"]["rope_theta"]
    windowed = {"rope_type": "default", "rope_theta": data.number("rope.freq_base_swa", theta)}
    return mistral(data, tensors, c) | {
        "layer_types": kinds(data, c, PERIOD),
        "rope_parameters": {SLIDING: windowed, FULL: c["rope_parameters"]},
    }


def gemma(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")


def gemma2(data: Metadata, tensors: Tensors, c: Fields, period: int = 2) -> Fields:
    scalar = c["head_dim"]
    if c["num_hidden_layers"] in _GEMMA_27B_LAYERS:
        scalar = c["hidden_size"] // c["num_attention_heads"]
    return gemma(data, tensors, c) | {
        "final_logit_softcapping": optional(data, "final_logit_softcapping"),
        "query_pre_attn_scalar": scalar,
        "sliding_window": data.integer(WINDOW),
        "layer_types": kinds(data, c, period),
    }


def gemma2_capped(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    cap = data.number("attn_logit_softcapping")
    return gemma2(data, tensors, c) | {"attn_logit_softcapping": cap}


def gemma3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    windowed = {"rope_type": "default", "rope_theta": data.number("rope.freq_base_swa", _LOCAL_ROPE_BASE)}
    return gemma2(data, tensors, c, period=6) | {
        "rope_parameters": {SLIDING: windowed, FULL: c["rope_parameters"]},
    }


def phi3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    original = data.integer("rope.scaling.original_context_length")
    parameters = c["rope_parameters"]
    if parameters["rope_type"] == "longrope":
        parameters = parameters | {"original_max_position_embeddings": original}
    return rms(data, tensors, c) | {
        "original_max_position_embeddings": original,
        "rope_parameters": parameters,
        "sliding_window": data.integer(WINDOW, 0, least=0) or None,
    }


def seed_oss(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"attention_out_bias": "blk.0.attn_output.bias" in tensors}


def ernie(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"use_bias": c["attention_bias"]}


def stablelm(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": epsilon(data),
        "use_parallel_residual": data.flag("use_parallel_residual"),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_qkv_bias": c["attention_bias"],
    }


def exaone4(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    window = data.integer(WINDOW, 0, least=0) or None
    layers = kinds(data, c, PERIOD) if window else [FULL] * c["num_hidden_layers"]
    return rms(data, tensors, c) | {"sliding_window": window, "layer_types": layers}


def mistral3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"sliding_window": None}


def ministral3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    share = data.number("rope.scaling.yarn_log_multiplier", 0.0)
    scales = {"mscale": 1.0, "mscale_all_dim": share} if share else {}
    growth = {"llama_4_scaling_beta": data.number("attention.temperature_scale")}
    return mistral3(data, tensors, c) | {"rope_parameters": c["rope_parameters"] | scales | growth}


def apertus(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"hidden_act": "xielu"}
