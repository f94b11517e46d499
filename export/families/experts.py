"""Families whose MLPs are mixtures of experts.

In: transformers' configurations. Out: rows of the table.
"""

from typing import Any

from firp.export.families.names import LLAMA
from firp.export.families.recipe import POST_NORM, Family, model
from firp.runtime.bundle.model_config import ClampedConfig, ExpertsConfig, ModelConfig

_EXPERTS = LLAMA.but(
    router="mlp.gate",
    expert_gate_up_proj="mlp.experts.{e}.gate_proj & mlp.experts.{e}.up_proj",
    expert_down_proj="mlp.experts.{e}.down_proj",
    shared_gate_up_proj="mlp.shared_expert.gate_proj & mlp.shared_expert.up_proj",
    shared_down_proj="mlp.shared_expert.down_proj",
    shared_gate="mlp.shared_expert_gate",
)
BIASED = _EXPERTS.but(
    selection_bias="mlp.gate.e_score_correction_bias | bare",
    shared_gate_up_proj="mlp.shared_experts.gate_proj & mlp.shared_experts.up_proj",
    shared_down_proj="mlp.shared_experts.down_proj",
)
_MIXTRAL = _EXPERTS.but(
    router="block_sparse_moe.gate",
    selection_bias="block_sparse_moe.e_score_correction_bias | bare",
    expert_gate_up_proj="block_sparse_moe.experts.{e}.w1 & block_sparse_moe.experts.{e}.w3",
    expert_down_proj="block_sparse_moe.experts.{e}.w2",
)


_GPT_OSS = _EXPERTS.but(
    sinks="self_attn.sinks | bare",
    router="mlp.router",
    expert_gate_up_proj="mlp.experts.gate_up_proj[{e}] | alternating columns",
    expert_down_proj="mlp.experts.down_proj[{e}] | transposed",
)


def mixture(
    c: Any,
    size: int,
    score: str = "softmax",
    normalized: bool = True,
    scale: float = 1.0,
    selection_bias: bool = False,
    groups: tuple[int, int] = (1, 1),
    shared_size: int | None = None,
    shared_gate: bool = False,
    groups_rated_by: int = 2,
) -> ExpertsConfig:
    """The experts of a model. groups: how many, and how many of them are chosen from."""
    names = ("num_local_experts", "num_experts")
    count = next(getattr(c, name) for name in names if getattr(c, name, None))
    bias, parts = selection_bias, (*groups, shared_size or None, shared_gate, groups_rated_by)
    return ExpertsConfig(count, c.num_experts_per_tok, size, score, normalized, float(scale), bias, *parts)


def _olmoe(c: Any, **parts: Any) -> ModelConfig:
    experts = mixture(c, c.intermediate_size, normalized=c.norm_topk_prob)
    return model(c, experts=experts, qk_norm="all", **parts)


def _qwen(c: Any, shared_size: int | None = None, **parts: Any) -> ModelConfig:
    experts = mixture(
        c,
        c.moe_intermediate_size,
        normalized=c.norm_topk_prob,
        shared_size=shared_size,
        shared_gate=shared_size is not None,
    )
    step, dense = c.decoder_sparse_step, c.mlp_only_layers or ()
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(c.num_hidden_layers)]
    return model(c, experts=experts, sparse=sparse, **parts)


def grouped_mixture(c: Any) -> ExpertsConfig:
    """Experts in groups, beside a shared one, as DeepSeek-V3 has them."""
    return mixture(
        c,
        c.moe_intermediate_size,
        "sigmoid",
        c.norm_topk_prob,
        c.routed_scaling_factor,
        True,
        (c.n_group, c.topk_group),
        c.moe_intermediate_size * c.n_shared_experts,
    )


def after_dense(c: Any) -> list[bool]:
    """Which layers are sparse, where the first ones are not."""
    return [index >= c.first_k_dense_replace for index in range(c.num_hidden_layers)]


def _grouped(c: Any, **parts: Any) -> ModelConfig:
    return model(c, experts=grouped_mixture(c), sparse=after_dense(c), **parts)


def _ernie(c: Any) -> ModelConfig:
    size = c.moe_intermediate_size
    experts = mixture(c, size, selection_bias=True, shared_size=size * c.moe_num_shared_experts)
    first, last, step = c.moe_layer_start_index, c.moe_layer_end_index, c.moe_layer_interval
    sparse = [(i + 1) % step == 0 and first <= i <= last for i in range(c.num_hidden_layers)]
    return model(c, experts=experts, sparse=sparse, interleaved=True)


def _minimax(c: Any) -> ModelConfig:
    experts = mixture(c, c.intermediate_size, "sigmoid", selection_bias=True)
    return model(c, experts=experts, qk_norm="all")


def _gpt_oss(c: Any) -> ModelConfig:
    clamped = ClampedConfig(c.swiglu_limit, c.swiglu_alpha)
    return model(c, experts=mixture(c, c.intermediate_size), sinks=True, clamped=clamped)


EXPERTS: dict[str, Family] = {
    "mixtral": Family(lambda c: model(c, experts=mixture(c, c.intermediate_size)), _MIXTRAL, quantizes=False),
    "minimax_m2": Family(_minimax, _MIXTRAL, quantizes=False),
    "olmoe": Family(lambda c: _olmoe(c, clip=c.clip_qkv), _EXPERTS, quantizes=False),
    "flex_olmo": Family(
        lambda c: _olmoe(c, norms=POST_NORM),
        _EXPERTS.but(
            attention_out_norm="post_attention_layernorm", mlp_out_norm="post_feedforward_layernorm"
        ),
        quantizes=False,
    ),
    "qwen2_moe": Family(lambda c: _qwen(c, c.shared_expert_intermediate_size), _EXPERTS, quantizes=False),
    "qwen3_moe": Family(lambda c: _qwen(c, qk_norm="head"), _EXPERTS, quantizes=False),
    "dots1": Family(lambda c: _grouped(c, qk_norm="head"), BIASED, quantizes=False),
    "glm4_moe": Family(
        lambda c: _grouped(c, qk_norm="head" if c.use_qk_norm else ""), BIASED, quantizes=False
    ),
    "gpt_oss": Family(_gpt_oss, _GPT_OSS, quantizes=False),
    "ernie4_5_moe": Family(
        _ernie,
        BIASED.but(selection_bias="mlp.moe_statics.e_score_correction_bias | bare"),
        quantizes=False,
    ),
}
