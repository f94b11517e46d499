"""Families whose checkpoints hold the experts of a layer in one tensor.

In: transformers' configurations. Out: rows of the table.
"""

from typing import Any

from firp.export.families.experts import EXPERT_NAMES, mixture
from firp.export.families.gated import GRANITE_SHARED, granite, theta_of_layers
from firp.export.families.recipe import Family, model, refuse
from firp.runtime.bundle.model_config import ClampedConfig, ModelConfig
from firp.runtime.errors import CheckpointError

_GRANITE = GRANITE_SHARED.but(
    router="block_sparse_moe.router.layer",
    expert_gate_up_proj="block_sparse_moe.input_linear.weight[{e}]",
    expert_down_proj="block_sparse_moe.output_linear.weight[{e}]",
)
_DBRX = EXPERT_NAMES.but(
    layer="transformer.blocks.{i}.",
    embed_tokens="transformer.wte",
    norm="transformer.norm_f",
    input_norm="norm_attn_norm.norm_1",
    qkv_proj="norm_attn_norm.attn.Wqkv",
    o_proj="norm_attn_norm.attn.out_proj",
    mlp_norm="norm_attn_norm.norm_2",
    router="ffn.router.layer",
    expert_gate_up_proj="ffn.experts.mlp.w1[{e}] & ffn.experts.mlp.v1[{e}]",
    expert_down_proj="ffn.experts.mlp.w2[{e}] | transposed",
)


def _gpt_oss(c: Any) -> ModelConfig:
    clamped = ClampedConfig(c.swiglu_limit, c.swiglu_alpha)
    return model(c, experts=mixture(c, c.intermediate_size), sinks=True, clamped=clamped)


def _granite_moe(c: Any, shared_size: int | None = None, **parts: Any) -> ModelConfig:
    experts = mixture(c, c.intermediate_size, shared_size=shared_size) if c.num_local_experts else None
    return granite(c, experts=experts, inner=shared_size or c.intermediate_size, **parts)


def _granite_hybrid(c: Any) -> ModelConfig:
    parts = {} if c.position_embedding_type == "rope" else {"ropes": {}}
    return _granite_moe(c, c.shared_intermediate_size, **parts)


def _granite_swa(c: Any) -> ModelConfig:
    ropes, rope_of = theta_of_layers(c)
    return _granite_moe(c, c.shared_intermediate_size, sinks=True, ropes=ropes, rope_of=rope_of)


def _dbrx(c: Any) -> ModelConfig:
    attention, ffn = c.attn_config, c.ffn_config
    theta = c.rope_parameters["rope_theta"]
    if getattr(attention, "rope_theta", theta) != theta:
        raise CheckpointError(
            "two values of rope_theta",
            got=f"{attention.rope_theta} in attn_config, where transformers takes {theta}",
            fix="say it outside attn_config too, in config.json",
        )
    refuse(ffn, moe_normalize_expert_weights=lambda power: power not in (None, 1))
    experts = mixture(ffn, ffn.ffn_hidden_size, normalized=ffn.moe_normalize_expert_weights is not None)
    activation = ffn.ffn_act_fn["name"]
    return model(
        c, norm="layer", epsilon=1e-5, clip=attention.clip_qkv, experts=experts, inner=ffn.ffn_hidden_size,
        activation=activation,
    )  # fmt: skip


STACKED: dict[str, Family] = {
    "gpt_oss": Family(
        _gpt_oss,
        EXPERT_NAMES.but(
            sinks="self_attn.sinks | bare",
            router="mlp.router",
            expert_gate_up_proj="mlp.experts.gate_up_proj[{e}] | alternating columns",
            expert_down_proj="mlp.experts.down_proj[{e}] | transposed",
        ),
    ),
    "granitemoe": Family(_granite_moe, _GRANITE),
    "granitemoeshared": Family(lambda c: _granite_moe(c, c.shared_intermediate_size), _GRANITE),
    "granitemoehybrid": Family(_granite_hybrid, _GRANITE),
    "granitemoe_swa": Family(
        _granite_swa,
        _GRANITE.but(
            sinks="self_attn.sinks | bare",
            router="block_sparse_moe.router",
            expert_gate_up_proj="block_sparse_moe.experts.gate_up_proj[{e}]",
            expert_down_proj="block_sparse_moe.experts.down_proj[{e}]",
        ),
    ),
    "dbrx": Family(_dbrx, _DBRX),
}
