"""Random tiny models of every family: their configurations, easy and adversarial ones, drawn from a seed.

In: a model_type and a seed. Out: a checkpoint as transformers saves it.
"""

import random
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
_SPARSE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
_GROUPED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
    "head_dim": 8,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 9,
}
_LATENT_EXPERTS = _GROUPED | _LATENT | {"head_dim": None}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 5,
    "mscale": 0.7,
    "mscale_all_dim": 0.8,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_THETAS = {"sliding_window": 7, "layer_rope_theta": [10000.0, 0, 500.0]}
_KINDS = ["dense", "sparse", "sparse"]
_ROUTED = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "num_shared_experts": 2,
    "mlp_layer_types": _KINDS,
    "head_dim": 8,
}
# what a family's configuration calls otherwise, or has besides
CHANGES: dict[str, dict[str, Any]] = {
    "cwm": _WINDOWS,
    "ministral": _WINDOWS | {"rope_parameters": _ROPE, "head_dim": 8},
    "ministral3": {
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 5,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 0.5},
    "qwen2_moe": _SPARSE | {"shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
    "qwen3_moe": _SPARSE | {"mlp_only_layers": [1], "decoder_sparse_step": 1, "head_dim": 8},
    "flint": _SPARSE
    | _WINDOWS
    | {
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [0],
        "head_dim": 8,
        "decoder_sparse_step": 1,
    },
    "minimax_m2": {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 8},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "dots1": _GROUPED,
    "glm4_moe": _GROUPED | {"use_qk_norm": True},
    "ernie4_5_moe": {
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 12,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 1,
    },
    "gpt_oss": _WINDOWS
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "swiglu_limit": 0.5,
        "rope_parameters": _ROPE
        | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "truncate": False},
    },
    "deepseek_v2": _LATENT_EXPERTS | {"topk_method": "group_limited_greedy", "rope_parameters": _YARN},
    "deepseek_v3": _LATENT_EXPERTS | {"rope_parameters": _YARN},
    "sarvam_mla": _LATENT_EXPERTS | {"q_lora_rank": None},
    "glm4_moe_lite": _LATENT_EXPERTS | {"first_k_dense_replace": None},
    "minicpm3": _LATENT | {"scale_emb": 3.0, "scale_depth": 0.9, "dim_model_base": 20},
    "youtu": _LATENT | {"q_lora_rank": None},
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
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 40,
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 4,
    },
    "granite_swa": _SCALES | _WINDOWS | _THETAS,
    "granitemoe": _SCALES | {"num_local_experts": 5, "num_experts_per_tok": 2},
    "granitemoeshared": _SCALES
    | {"num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    "granitemoe_swa": _SCALES
    | _WINDOWS
    | _THETAS
    | {"num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 96,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 5, "moe_top_k": 2},
    },
    "afmoe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "num_shared_experts": 2,
        "num_dense_layers": 1,
        "route_scale": 1.7,
        "mup_enabled": True,
        "head_dim": 8,
    }
    | _WINDOWS,
    "phimoe": {
        "num_local_experts": 5,
        "router_jitter_noise": 0.3,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "hunyuan_v1_moe": {"num_experts": 5, "moe_topk": [2, 2, 2], "head_dim": 8},
    "solar_open": {name: value for name, value in _GROUPED.items() if name != "first_k_dense_replace"},
    "mellum": _SPARSE
    | _WINDOWS
    | {
        "mlp_layer_types": _KINDS,
        "head_dim": 8,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE | {"rope_theta": 1e6}},
    },
    "exaone_moe": _ROUTED | _WINDOWS | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7},
    "hy_v3": _ROUTED | {"router_scaling_factor": 1.7},
    "hyperclovax": _SCALES | {"use_post_norm": True},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": _WINDOWS | {"logit_scale": 0.25},
    "cohere_compass_text": _WINDOWS
    | {"logit_scale": 0.25, "rope_parameters": {"sliding_attention": _ROPE, "full_attention": None}},
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
    "biogpt": _NO_PAIRS,
    "bloom": _NO_PAIRS | {"n_layer": 3, "n_head": 4, "seq_length": 96},
    "mpt": _NO_PAIRS | {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 96},
    "persimmon": _NO_PAIRS,
}


def family_config(model_type: str, **changes: Any) -> Any:
    """The configuration of a tiny model."""
    fields = _SIZES | CHANGES.get(model_type, {}) | changes
    given = {name: value for name, value in fields.items() if value is not None or name == "q_lora_rank"}
    return CONFIG_MAPPING[model_type](**given)


def save_family(folder: Path, model_type: str, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint; biases, norms and other vectors are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(model_type, **changes))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.3)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("proj_bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


_HEADS = ((4, 2), (4, 1), (3, 3), (6, 2), (1, 1), (5, 1), (8, 4))
_PARTIAL = (
    "glm",
    "glm4",
    "glm4_moe",
    "phi",
    "stablelm",
    "nemotron",
    "persimmon",
    "gpt_neox",
    "gptj",
    "codegen",
)
_MIXED = tuple(
    name for name, changes in CHANGES.items() if "layer_types" in changes and "sliding_window" in changes
)
_SCALED_ROPE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "seed_oss",
    "olmo2",
    "granite",
    "smollm3",
    "arcee",
    "starcoder2",
    "phi3",
    "olmoe",
    "qwen3_moe",
)
_OPTIONS: dict[str, dict[str, tuple]] = {
    "llama": {"attention_bias": (False, True), "mlp_bias": (False, True)},
    "mistral": {"sliding_window": (2, 5, 40)},
    "phi3": {"sliding_window": (3, 50), "original_max_position_embeddings": (64,)},
    "starcoder2": {"sliding_window": (4, 60), "use_bias": (True, False)},
    "seed_oss": {"attention_bias": (True, False), "attention_out_bias": (False, True)},
    "phi": {"qk_layernorm": (True, False)},
    "stablelm": {
        "use_parallel_residual": (True, False),
        "qk_layernorm": (True, False),
        "use_qkv_bias": (True, False),
    },
    "cohere": {"use_qk_norm": (True, False), "logit_scale": (0.0625, 1.5)},
    "cohere2": {"logit_scale": (0.0625, 1.5)},
    "cohere_compass_text": {
        "logit_scale": (None, 1.5),
        "rope_parameters": (
            {"sliding_attention": _ROPE, "full_attention": _ROPE | {"rope_theta": 1e6}},
            {"sliding_attention": None, "full_attention": _ROPE},
        ),
    },
    "olmo": {"clip_qkv": (0.1, 2.0, None)},
    "gemma2": {"attn_logit_softcapping": (3.0, 50.0), "final_logit_softcapping": (5.0, 30.0)},
    "granite": {
        "attention_bias": (False, True),
        "mlp_bias": (False, True),
        "residual_multiplier": (0.1, 2.0),
    },
    "hyperclovax": {"use_post_norm": (False, True)},
    "smollm3": {"no_rope_layers": ([1, 0, 1], [0, 0, 1], [1, 1, 1])},
    "gpt_bigcode": {"multi_query": (True, False)},
    "gpt2": {"scale_attn_weights": (True, False)},
    "gpt_neo": {"window_size": (2, 30)},
    "gpt_neox": {
        "use_parallel_residual": (True, False),
        "rotary_pct": (0.25, 1.0),
        "attention_bias": (True, False),
    },
    "falcon": {"bias": (True, False)},
    "persimmon": {"qk_layernorm": (True, False)},
    "arcee": {"attention_bias": (False, True), "mlp_bias": (False, True)},
    "jais2": {"attention_bias": (True, False)},
    "helium": {"attention_bias": (False, True)},
    "ernie4_5": {"use_bias": (False, True)},
    "opt": {"enable_bias": (True, False)},
    "gpt_oss": {
        "num_experts_per_tok": (1, 4),
        "swiglu_limit": (0.1, 7.0),
        "attention_bias": (True, False),
    },
    "granite_swa": {"layer_rope_theta": ([0, 0, 0], [100.0, 1e6, 0], [500.0, 500.0, 500.0])},
    "granitemoe_swa": {"layer_rope_theta": ([0, 0, 5.0], None), "shared_intermediate_size": (0, 7)},
    "granitemoehybrid": {"num_local_experts": (0, 4), "position_embedding_type": ("rope", "nope")},
    "granitemoe": {"num_experts_per_tok": (1, 5), "attention_bias": (True, False)},
    "granitemoeshared": {"num_experts_per_tok": (1, 5), "shared_intermediate_size": (0, 7)},
    "hunyuan_v1_moe": {"moe_topk": (1, 5), "attention_bias": (True, False)},
    "afmoe": {"mup_enabled": (True, False), "num_dense_layers": (0, 2), "num_experts_per_tok": (1, 6)},
    "phimoe": {
        "router_jitter_noise": (0.01, 1.0),
        "attention_bias": (True, False),
        "sliding_window": (None, 6),
    },
    "dbrx": {
        "ffn_config": tuple(
            {
                "ffn_hidden_size": 12,
                "moe_num_experts": 5,
                "moe_top_k": top,
                "moe_normalize_expert_weights": norm,
            }
            for top, norm in ((1, 1.0), (3, None))
        )
    },
    "mellum": {"norm_topk_prob": (True, False), "mlp_layer_types": (_KINDS, ["sparse"] * 3)},
    "exaone_moe": {"norm_topk_prob": (True, False), "topk_group": (2, 4), "num_shared_experts": (1, 3)},
    "hy_v3": {"num_experts_per_tok": (1, 8), "attention_bias": (True, False)},
    "solar_open": {"norm_topk_prob": (True, False), "topk_group": (2, 3)},
    "mixtral": {"num_experts_per_tok": (1, 4), "sliding_window": (None, 6)},
    "olmoe": {"norm_topk_prob": (True, False), "clip_qkv": (0.2, None)},
    "flex_olmo": {"num_experts_per_tok": (1, 3), "norm_topk_prob": (True, False)},
    "qwen2_moe": {"norm_topk_prob": (True, False), "decoder_sparse_step": (1, 2)},
    "flint": {"norm_topk_prob": (True, False), "num_experts_per_tok": (1, 5), "mlp_only_layers": ([0], [1])},
    "qwen3_moe": {
        "norm_topk_prob": (True, False),
        "num_experts_per_tok": (1, 5),
        "mlp_only_layers": ([], [0, 1]),
    },
    "dots1": {"first_k_dense_replace": (0, 2), "topk_group": (2, 4), "n_shared_experts": (1, 3)},
    "glm4_moe": {"use_qk_norm": (True, False), "norm_topk_prob": (True, False), "topk_group": (2, 3)},
    "ernie4_5_moe": {"moe_num_shared_experts": (0, 1), "moe_layer_start_index": (0, 2)},
    "deepseek_v2": {
        "topk_method": ("greedy", "group_limited_greedy"),
        "first_k_dense_replace": (0, 2, 3),
        "mlp_bias": (False, True),
    },
    "deepseek_v3": {
        "rope_interleave": (True, False),
        "first_k_dense_replace": (0, 2, 3),
        "norm_topk_prob": (True, False),
        "n_group": (2, 4),
    },
    "glm4_moe_lite": {"n_group": (1, 2), "topk_group": (1,)},
    "youtu": {"rope_interleave": (True, False)},
}


_MANY_KEYS = {"multi_query": False, "num_kv_heads": None}  # as many as there are heads
FALCON_RW = {"new_decoder_architecture": False, "parallel_attn": False, "alibi": True, **_MANY_KEYS}
_FALCONS = (
    {"new_decoder_architecture": True, "parallel_attn": True},
    {"new_decoder_architecture": True, "parallel_attn": True, "num_ln_in_parallel_attn": 1},
    {"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True},
    {"new_decoder_architecture": False, "parallel_attn": False, "multi_query": True},
    {"new_decoder_architecture": False, "parallel_attn": True, **_MANY_KEYS},
    FALCON_RW,
    {"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True, "alibi": True},
)


def sizes(model_type: str, heads: int, pairs: int, size: int, inner: int) -> dict[str, Any]:
    """What a family calls its numbers of heads and of heads with keys, the features of a head, and those
    of its MLP.
    """
    own = CHANGES.get(model_type, {})
    names = {"hidden_size": heads * size, "num_attention_heads": heads, "num_key_value_heads": pairs}
    names |= {"intermediate_size": inner}
    if "n_embd" in own:
        names |= {"n_embd": heads * size, "n_head": heads}
    elif model_type == "gpt_neo":
        names |= {"num_heads": heads}
    elif model_type == "bloom":
        names |= {"n_head": heads}
    elif model_type == "dbrx":
        attention = own["attn_config"] | {"kv_n_heads": pairs}
        names |= {"d_model": heads * size, "n_heads": heads, "attn_config": attention}
    elif model_type == "mpt":
        names |= {"d_model": heads * size, "n_heads": heads}
    elif model_type == "opt":
        names |= {"word_embed_proj_dim": heads * size, "ffn_dim": inner}
    elif model_type == "falcon":
        names |= {"num_kv_heads": pairs, "ffn_hidden_size": inner}
    elif model_type == "granitemoehybrid":
        names |= {"shared_intermediate_size": inner, "mamba_n_heads": 2 * heads}
    if "n_inner" in own:
        names |= {"n_inner": inner}
    if own.get("num_key_value_heads", 0) is None:
        names.pop("num_key_value_heads", None)
    if own.get("head_dim") is not None:
        names["head_dim"] = size
    if "kv_lora_rank" in own:
        names["num_key_value_heads"] = heads
    return names


def random_changes(rng: random.Random, model_type: str, hard: bool) -> dict[str, Any]:
    """Fields of a configuration. hard: sizes and options that break what is almost right."""
    heads, pairs = rng.choice(_HEADS) if hard else (4, 2)
    wide = model_type in _PARTIAL or heads < 3  # a stream of two features is rounding alone
    size = rng.choice((8, 16) if wide else (2, 6, 8, 12, 16)) if hard else 8
    own = CHANGES.get(model_type, {})
    changes: dict[str, Any] = {
        "initializer_range": rng.choice((0.05, 0.2, 0.35)),
        "vocab_size": rng.choice((5, 17, 61, 193)) if hard else 61,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    if model_type in ("gptj", "codegen", "phi", "phimoe", "dbrx"):  # whose heads have a bias, or must not
        changes["tie_word_embeddings"] = False
    changes |= sizes(model_type, heads, pairs, size, rng.choice((1, 7, 40)) if hard else 40)
    if "kv_lora_rank" in own and hard:
        changes |= _random_latent(rng, model_type == "deepseek_v2")
    if hard:
        if model_type == "falcon":
            changes |= rng.choice(_FALCONS)
        changes |= {name: rng.choice(values) for name, values in _OPTIONS.get(model_type, {}).items()}
        if model_type in _MIXED:
            kinds = ("sliding_attention", "full_attention")
            changes["layer_types"] = [rng.choice(kinds) for _ in range(3)]
            changes["sliding_window"] = rng.choice((2, 5, 30))
        if model_type in _SCALED_ROPE:
            changes["rope_parameters"] = _random_rope(rng, size)
    return changes


def _random_latent(rng: random.Random, even: bool) -> dict[str, Any]:
    return {
        "q_lora_rank": rng.choice((None, 1, 7, 24)),
        "kv_lora_rank": rng.choice((2, 8, 34) if even else (3, 8, 33)),
        "qk_nope_head_dim": rng.choice((2, 6, 16)),
        "qk_rope_head_dim": rng.choice((2, 8, 12)),
        "v_head_dim": rng.choice((1, 6, 10, 16)),
        "rope_parameters": rng.choice((_ROPE, _YARN, _YARN | {"mscale_all_dim": 0.0})),
    }


def _random_rope(rng: random.Random, size: int) -> dict[str, Any]:
    """size: features of a head."""
    rope = {"rope_type": rng.choice(("default", "linear", "dynamic", "yarn", "llama3", "longrope"))}
    rope["rope_theta"] = rng.choice((2.0, 1e4, 1e6))
    if rope["rope_type"] != "default":
        rope["factor"] = rng.choice((1.5, 4.0))
    if rope["rope_type"] in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = 32
    if rope["rope_type"] == "longrope":
        rope["original_max_position_embeddings"] = 64
        for name in ("short_factor", "long_factor"):
            rope[name] = [rng.uniform(1.0, 3.0) for _ in range(size // 2)]
    if rope["rope_type"] == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope
