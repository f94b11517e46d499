"""Families that attend to latent rows, most of which come from DeepSeek-V2.

In: transformers' configurations. Out: rows of the table.
"""

import math
from typing import Any

from firp.export.families.experts import BIASED, after_dense, grouped_mixture, mixture
from firp.export.families.names import Names
from firp.export.families.recipe import Family, model, refuse
from firp.runtime.bundle.model_config import LatentConfig, ModelConfig

_EPSILON = 1e-6  # of the norms of what is compressed, in every family, whatever its other norms have
_LATENT = BIASED.but(
    qkv_proj="self_attn.q_a_proj & self_attn.kv_a_proj_with_mqa",
    q_norm="self_attn.q_a_layernorm",
    q_up_proj="self_attn.q_b_proj",
    latent_norm="self_attn.kv_a_layernorm",
    key_up="self_attn.kv_b_proj | keys",
    value_up="self_attn.kv_b_proj | values",
)
_DIRECT = _LATENT.but(qkv_proj="self_attn.q_proj & self_attn.kv_a_proj_with_mqa")


def _names(c: Any) -> Names:
    return _DIRECT if c.q_lora_rank is None else _LATENT


def _latent(c: Any, **parts: Any) -> ModelConfig:
    refuse(c, num_key_value_heads=lambda heads: heads != c.num_attention_heads)
    latent = LatentConfig(
        c.kv_lora_rank, c.q_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, _EPSILON
    )
    scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5 * _sharpness(c.rope_parameters) ** 2
    interleaved = bool(getattr(c, "rope_interleave", False))
    return model(c, **{"latent": latent, "scale": scale, "interleaved": interleaved} | parts)


def _sharpness(rope: dict[str, Any]) -> float:
    """What queries and keys gain each where YaRN stretches positions (Peng et al., 2023, 3.4)."""
    share = rope.get("mscale_all_dim") if rope["rope_type"] != "default" else None
    return 0.1 * share * math.log(rope["factor"]) + 1 if share and rope["factor"] > 1 else 1.0


def _deepseek_v2(c: Any) -> ModelConfig:
    refuse(
        c,
        topk_method=lambda method: method not in ("greedy", "group_limited_greedy"),
        # of which transformers' module makes complex numbers
        qk_nope_head_dim=lambda size: size % 2,
        kv_lora_rank=lambda size: size % 2,
    )
    experts = mixture(
        c,
        c.moe_intermediate_size,
        normalized=False,
        scale=c.routed_scaling_factor,
        groups=(1, 1) if c.topk_method == "greedy" else (c.n_group, c.topk_group),
        shared_size=c.moe_intermediate_size * c.n_shared_experts,
        groups_rated_by=1,
    )
    return _latent(c, experts=experts, sparse=after_dense(c), interleaved=True)


def _minicpm3(c: Any) -> ModelConfig:
    return _latent(
        c,
        embedding_scale=c.scale_emb,
        residual_scale=c.scale_depth / c.num_hidden_layers**0.5,
        logits_scale=1 / c.logits_scaling,
    )


def _deepseek_v3(c: Any) -> ModelConfig:
    return _latent(c, experts=grouped_mixture(c), sparse=after_dense(c))


def _glm4_moe_lite(c: Any) -> ModelConfig:
    sparse = [kind == "sparse" for kind in c.mlp_layer_types]
    return _latent(c, experts=grouped_mixture(c), sparse=sparse)


LATENT: dict[str, Family] = {
    "deepseek_v2": Family(_deepseek_v2, _names),
    "deepseek_v3": Family(_deepseek_v3, _names),
    "sarvam_mla": Family(_deepseek_v3, _names),
    "glm4_moe_lite": Family(_glm4_moe_lite, _names),
    "minicpm3": Family(_minicpm3, _names),
    "youtu": Family(_latent, _names),
}
