"""Families whose MLPs are mixtures of experts.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json.
"""

from firp.export.sources.gguf.fields.common import (
    PERIOD,
    SHARED_SIZE,
    SIGMOID,
    SOFTMAX,
    WINDOW,
    Fields,
    Tensors,
    epsilon,
    expert_count,
    gate,
    kinds,
    optional,
    rms,
    same,
)
from firp.export.sources.gguf.fields.dense import granite, phi3
from firp.export.sources.gguf.metadata import Metadata

_SIZE = "expert_feed_forward_length"


def mixtral(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {
        "num_local_experts": expert_count(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "sliding_window": data.integer(WINDOW) if data.has(WINDOW) else None,
    }


def qwen_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {
        "num_experts": expert_count(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "moe_intermediate_size": data.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def qwen2_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    size = data.integer("expert_shared_feed_forward_length")
    return qwen_moe(data, tensors, c) | {
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": size,
        "qkv_bias": c["attention_bias"],
    }


def olmoe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {
        "num_experts": expert_count(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "norm_topk_prob": False,
    }


def local(data: Metadata, tensors: Tensors) -> Fields:
    """How many experts there are, and how many a token goes to, as Mixtral calls them."""
    return {
        "num_local_experts": expert_count(data, tensors),
        "num_experts_per_tok": data.integer("expert_used_count"),
    }


def routed(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    """Experts in groups, beside shared ones, after some dense layers, as DeepSeek-V3 calls them."""
    dense = data.integer("leading_dense_block_count", 0, least=0)
    return {
        "n_routed_experts": expert_count(data, tensors, dense),
        "num_experts_per_tok": data.integer("expert_used_count"),
        "moe_intermediate_size": data.integer(_SIZE),
        "n_shared_experts": data.integer("expert_shared_count"),
        "n_group": data.integer("expert_group_count", 1),
        "topk_group": data.integer("expert_group_used_count", 1),
        "first_k_dense_replace": dense,
        "routed_scaling_factor": data.number("expert_weights_scale", 1.0),
        "norm_topk_prob": data.flag("expert_weights_norm", False),
    }


def gpt_oss(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    same(data, _SIZE, c["intermediate_size"])
    return (
        rms(data, tensors, c)
        | local(data, tensors)
        | {
            "sliding_window": data.integer(WINDOW),
            "layer_types": kinds(data, c, 2),
            "rope_parameters": c["rope_parameters"] | {"truncate": False},
        }
    )


def granite_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return granite(data, tensors, c) | local(data, tensors)


def granite_moe_shared(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return granite_moe(data, tensors, c) | {"shared_intermediate_size": data.integer(SHARED_SIZE)}


def dots1(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SIGMOID)
    return rms(data, tensors, c) | routed(data, tensors, c) | {"sliding_window": None}


def glm4_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SIGMOID)
    normed = "blk.0.attn_q_norm.weight" in tensors
    return rms(data, tensors, c) | routed(data, tensors, c) | {"use_qk_norm": normed}


def exaone_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SIGMOID)
    found = routed(data, tensors, c)
    dense, size = found["first_k_dense_replace"], found["moe_intermediate_size"]
    same(data, SHARED_SIZE, size * found["n_shared_experts"])
    return (
        rms(data, tensors, c)
        | found
        | {
            "num_experts": found["n_routed_experts"],
            "num_shared_experts": found["n_shared_experts"],
            "mlp_layer_types": ["dense"] * dense + ["sparse"] * (c["num_hidden_layers"] - dense),
            "sliding_window": data.integer(WINDOW),
            "layer_types": kinds(data, c, PERIOD),
        }
    )


def afmoe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SIGMOID)
    found = routed(data, tensors, c)
    if not found["norm_topk_prob"]:
        raise data.bad("expert_weights_norm", False, "true")
    same(data, "expert_group_count", 1)
    return rms(data, tensors, c) | {
        "num_experts": found["n_routed_experts"],
        "num_experts_per_tok": found["num_experts_per_tok"],
        "moe_intermediate_size": found["moe_intermediate_size"],
        "num_shared_experts": found["n_shared_experts"],
        "num_dense_layers": found["first_k_dense_replace"],
        "route_scale": found["routed_scaling_factor"],
        "mup_enabled": True,
        "sliding_window": data.integer(WINDOW),
        "layer_types": kinds(data, c, PERIOD),
    }


def ernie_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SOFTMAX)
    first, step = (
        data.integer("leading_dense_block_count", least=0),
        data.integer("interleave_moe_layer_step"),
    )
    sparse = next((i for i in range(first, c["num_hidden_layers"]) if (i + 1) % step == 0), first)
    shared, size = data.integer("expert_shared_count", 0, least=0), data.integer(_SIZE)
    if shared:
        same(data, SHARED_SIZE, size * shared)
    return rms(data, tensors, c) | {
        "moe_num_experts": expert_count(data, tensors, sparse),
        "moe_k": data.integer("expert_used_count"),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": first,
        "moe_layer_end_index": c["num_hidden_layers"] - 1,
        "moe_layer_interval": step,
        "use_bias": c["attention_bias"],
    }


def minimax_m2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    gate(data, SIGMOID)
    same(data, _SIZE, c["intermediate_size"])
    return rms(data, tensors, c) | local(data, tensors)


def hunyuan_moe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    for key in (_SIZE, SHARED_SIZE):
        same(data, key, c["intermediate_size"])
    same(data, "expert_shared_count", 1)
    return rms(data, tensors, c) | {
        "num_experts": expert_count(data, tensors),
        "moe_topk": data.integer("expert_used_count"),
    }


def dbrx(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    if epsilon(data) != 1e-5:
        raise data.bad("attention.layer_norm_epsilon", epsilon(data), "1e-05")
    found = local(data, tensors)
    return {
        "d_model": c["hidden_size"],
        "n_heads": c["num_attention_heads"],
        "n_layers": c["num_hidden_layers"],
        "max_seq_len": c["max_position_embeddings"],
        "attn_config": {
            "kv_n_heads": c["num_key_value_heads"],
            "rope_theta": c["rope_parameters"]["rope_theta"],
            "clip_qkv": optional(data, "attention.clamp_kqv"),
        },
        "ffn_config": {
            "hidden_size": c["hidden_size"],
            "ffn_hidden_size": c["intermediate_size"],
            "moe_num_experts": found["num_local_experts"],
            "moe_top_k": found["num_experts_per_tok"],
        },
    }


def phimoe(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    scale = c["rope_parameters"].get("attention_factor")
    scales = {"short_mscale": scale, "long_mscale": scale} if scale else {}
    return (
        phi3(data, tensors, c)
        | local(data, tensors)
        | {
            "rope_parameters": phi3(data, tensors, c)["rope_parameters"] | scales,
            "lm_head_bias": "output.bias" in tensors,
        }
    )
