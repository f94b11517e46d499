"""Families whose MLPs are mixtures of experts.

In: transformers' configurations. Out: rows of the table.
"""

from typing import Any

from firp.export.families.gated import on_sliding_layers
from firp.export.families.names import LLAMA
from firp.export.families.recipe import POST_NORM, PRE_NORM, Family, model, refuse
from firp.export.families.ropes import ALL_LAYERS, rope_tables
from firp.runtime.bundle.model_config import ExpertsConfig, ModelConfig, RopeTable
from firp.runtime.errors import CheckpointError

EXPERT_NAMES = LLAMA.but(
    router="mlp.gate",
    expert_gate_up_proj="mlp.experts.{e}.gate_proj & mlp.experts.{e}.up_proj",
    expert_down_proj="mlp.experts.{e}.down_proj",
    shared_gate_up_proj="mlp.shared_expert.gate_proj & mlp.shared_expert.up_proj",
    shared_down_proj="mlp.shared_expert.down_proj",
    shared_gate="mlp.shared_expert_gate",
)
BIASED = EXPERT_NAMES.but(
    selection_bias="mlp.gate.e_score_correction_bias | bare",
    shared_gate_up_proj="mlp.shared_experts.gate_proj & mlp.shared_experts.up_proj",
    shared_down_proj="mlp.shared_experts.down_proj",
)
_MIXTRAL = EXPERT_NAMES.but(
    router="block_sparse_moe.gate",
    selection_bias="block_sparse_moe.e_score_correction_bias | bare",
    expert_gate_up_proj="block_sparse_moe.experts.{e}.w1 & block_sparse_moe.experts.{e}.w3",
    expert_down_proj="block_sparse_moe.experts.{e}.w2",
)


_COUNTS = ("num_local_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_top_k")


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
    jitter: float | None = None,
    chosen: int | None = None,
) -> ExpertsConfig:
    """What a configuration says of its experts. groups: how many, and how many of them are chosen from;
    chosen: by a row, None: as the configuration says.
    """
    count, chosen = _number(c, _COUNTS), chosen or _number(c, _CHOSEN)
    bias, parts = selection_bias, (*groups, shared_size or None, shared_gate, groups_rated_by, jitter)
    return ExpertsConfig(count, chosen, size, score, normalized, float(scale), bias, *parts)


def _number(c: Any, names: tuple[str, ...]) -> int:
    """The field of one of these names. Raises CheckpointError where it is no number of experts."""
    there = [name for name in names if getattr(c, name, None) is not None] or [names[0]]
    name = next((name for name in there if getattr(c, name, None)), there[0])
    value = getattr(c, name, None)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"bad {name}", got=f"{value!r:.60}", expected="a positive integer")
    return value


def _olmoe(c: Any, **parts: Any) -> ModelConfig:
    experts = mixture(c, c.intermediate_size, normalized=c.norm_topk_prob)
    return model(c, experts=experts, qk_norm="all", **parts)


def _qwen(
    c: Any, shared_size: int | None = None, shared_gate: bool = False, score: str = "softmax", **parts: Any
) -> ModelConfig:
    experts = mixture(
        c, c.moe_intermediate_size, score, c.norm_topk_prob, shared_size=shared_size, shared_gate=shared_gate
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


def _kinds(c: Any, scale: float, selection_bias: bool = True, **parts: Any) -> ModelConfig:
    """Layers of kinds that are listed; a shared expert of several times the size of one."""
    size = c.moe_intermediate_size
    experts = mixture(
        c, size, "sigmoid", getattr(c, "norm_topk_prob", True), scale, selection_bias,
        (getattr(c, "n_group", 1), getattr(c, "topk_group", 1)), size * c.num_shared_experts,
    )  # fmt: skip
    return model(c, experts=experts, sparse=_listed(c), qk_norm="head", **parts)


def _listed(c: Any) -> list[bool]:
    return [kind == "sparse" for kind in c.mlp_layer_types]


def _afmoe(c: Any) -> ModelConfig:
    size = c.moe_intermediate_size
    experts = mixture(
        c, size, "sigmoid", scale=c.route_scale, selection_bias=True, shared_size=size * c.num_shared_experts
    )
    return model(
        c,
        experts=experts,
        sparse=[index >= c.num_dense_layers for index in range(c.num_hidden_layers)],
        norms=PRE_NORM + POST_NORM,
        qk_norm="head",
        attention_gate=True,
        rope_of=[ALL_LAYERS if kind == "sliding_attention" else None for kind in c.layer_types],
        embedding_scale=c.hidden_size**0.5 if c.mup_enabled else 1.0,
    )


def _hunyuan(c: Any) -> ModelConfig:
    chosen = c.moe_topk if isinstance(c.moe_topk, list) else [c.moe_topk]
    refuse(c, moe_topk=lambda _: len(set(chosen)) != 1 or not chosen[0])  # of each layer its own
    experts = mixture(c, c.intermediate_size, shared_size=c.intermediate_size, chosen=chosen[0])
    return model(c, experts=experts, qk_norm="head", qk_norm_after_rope=True)


def _solar(c: Any) -> ModelConfig:
    size = c.moe_intermediate_size
    groups, shared = (c.n_group, c.topk_group), size * c.n_shared_experts
    experts = mixture(c, size, "sigmoid", c.norm_topk_prob, c.routed_scaling_factor, True, groups, shared)
    return model(c, experts=experts, inner=size)


def _mellum(c: Any) -> ModelConfig:
    experts = mixture(c, c.moe_intermediate_size, normalized=c.norm_topk_prob)
    return model(c, experts=experts, sparse=_listed(c), qk_norm="head")


def _phimoe(c: Any) -> ModelConfig:
    refuse(c, num_experts_per_tok=lambda count: count != 2)
    experts = mixture(
        c, c.intermediate_size, "sparsemixer", normalized=False, jitter=float(c.router_jitter_noise)
    )
    scale = c.rope_parameters.get("short_mscale")
    ropes = {
        name: RopeTable(table.frequencies, scale or table.scale) for name, table in rope_tables(c).items()
    }
    return model(c, experts=experts, ropes=ropes, norm="layer")


def _flint(c: Any) -> ModelConfig:
    return _qwen(
        c,
        c.shared_expert_intermediate_size,
        score="sigmoid",
        qk_norm="head",
        sinks=True,
        rope_of=on_sliding_layers(c),
    )


def _minimax(c: Any) -> ModelConfig:
    experts = mixture(c, c.intermediate_size, "sigmoid", selection_bias=True)
    return model(c, experts=experts, qk_norm="all")


EXPERTS: dict[str, Family] = {
    "mixtral": Family(lambda c: model(c, experts=mixture(c, c.intermediate_size)), _MIXTRAL),
    "phimoe": Family(_phimoe, _MIXTRAL),
    "minimax_m2": Family(_minimax, _MIXTRAL),
    "olmoe": Family(lambda c: _olmoe(c, clip=c.clip_qkv), EXPERT_NAMES),
    "flex_olmo": Family(
        lambda c: _olmoe(c, norms=POST_NORM),
        EXPERT_NAMES.but(
            attention_out_norm="post_attention_layernorm", mlp_out_norm="post_feedforward_layernorm"
        ),
    ),
    "qwen2_moe": Family(lambda c: _qwen(c, c.shared_expert_intermediate_size, True), EXPERT_NAMES),
    "qwen3_moe": Family(lambda c: _qwen(c, qk_norm="head"), EXPERT_NAMES),
    "flint": Family(_flint, EXPERT_NAMES.but(sinks="self_attn.softmax_offset | bare")),
    "dots1": Family(lambda c: _grouped(c, qk_norm="head"), BIASED),
    "glm4_moe": Family(lambda c: _grouped(c, qk_norm="head" if c.use_qk_norm else ""), BIASED),
    "solar_open": Family(_solar, BIASED),
    "mellum": Family(_mellum, EXPERT_NAMES),
    "exaone_moe": Family(
        lambda c: _kinds(c, c.routed_scaling_factor, rope_of=on_sliding_layers(c)),
        BIASED.but(selection_bias="mlp.e_score_correction_bias | bare"),
    ),
    "hy_v3": Family(
        lambda c: _kinds(c, c.router_scaling_factor),
        BIASED.but(
            router="mlp.router.gate",
            selection_bias="mlp.expert_bias | bare",
            shared_gate_up_proj="mlp.shared_mlp.gate_proj & mlp.shared_mlp.up_proj",
            shared_down_proj="mlp.shared_mlp.down_proj",
        ),
    ),
    "afmoe": Family(
        _afmoe,
        BIASED.but(
            attention_gate="self_attn.gate_proj",
            attention_out_norm="post_attention_layernorm",
            mlp_norm="pre_mlp_layernorm",
            mlp_out_norm="post_mlp_layernorm",
            router="mlp.router.gate",
            selection_bias="mlp.expert_bias | bare",
        ),
    ),
    "hunyuan_v1_moe": Family(
        _hunyuan,
        EXPERT_NAMES.but(
            q_norm="self_attn.query_layernorm",
            k_norm="self_attn.key_layernorm",
            router="mlp.gate.wg",
            shared_gate_up_proj="mlp.shared_mlp.gate_proj & mlp.shared_mlp.up_proj",
            shared_down_proj="mlp.shared_mlp.down_proj",
        ),
    ),
    "ernie4_5_moe": Family(
        _ernie,
        BIASED.but(selection_bias="mlp.moe_statics.e_score_correction_bias | bare"),
    ),
}
