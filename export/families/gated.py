"""Families that come from Llama: gated MLPs, rotary positions.

In: transformers' configurations. Out: rows of the table.
"""

import copy
from typing import Any

from firp.export.families.names import LLAMA
from firp.export.families.recipe import POST_NORM, PRE_NORM, Family, model, refuse
from firp.export.families.ropes import ALL_LAYERS, rope_tables
from firp.runtime.bundle.model_config import ModelConfig, QueryGrowth, RopeTable

_FUSED = LLAMA.but(gate_up_proj="mlp.gate_up_proj")
_GEMMA = LLAMA.but(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
).norms("plus1")
# the MLP of a dense layer, or the shared one beside experts
GRANITE_SHARED = LLAMA.but(
    gate_up_proj="shared_mlp.input_linear",
    down_proj="shared_mlp.output_linear",
    shared_gate_up_proj="shared_mlp.input_linear",
    shared_down_proj="shared_mlp.output_linear",
)
_POST = LLAMA.but(attention_out_norm="post_attention_layernorm", mlp_out_norm="post_feedforward_layernorm")


def _gemma(c: Any, **parts: Any) -> ModelConfig:
    refuse(c, use_bidirectional_attention=True)
    return model(c, embedding_scale=c.hidden_size**0.5, **parts)


def _gemma2(c: Any, norms: tuple[str, ...] = PRE_NORM + POST_NORM, **parts: Any) -> ModelConfig:
    return _gemma(
        c,
        norms=norms,
        scale=c.query_pre_attn_scalar**-0.5,
        attention_softcap=c.attn_logit_softcapping,
        logits_softcap=c.final_logit_softcapping,
        **parts,
    )


def granite(c: Any, **parts: Any) -> ModelConfig:
    return model(
        c,
        scale=c.attention_multiplier,
        embedding_scale=c.embedding_multiplier,
        residual_scale=c.residual_multiplier,
        **({"logits_scale": 1 / c.logits_scaling} | parts),
    )


def theta_of_layers(c: Any) -> tuple[dict[str, RopeTable], list[str | None]]:
    """Tables by theta, and that of each layer; a layer of theta 0 turns nothing."""
    ropes = {}
    for theta in sorted(set(c.layer_rope_theta) - {0}):
        alone = copy.deepcopy(c)
        alone.rope_parameters = c.rope_parameters | {"rope_theta": theta}
        ropes[f"theta_{theta:.9g}"] = rope_tables(alone)[ALL_LAYERS]
    return ropes, [f"theta_{theta:.9g}" if theta else None for theta in c.layer_rope_theta]


def _granite_swa(c: Any) -> ModelConfig:
    ropes, rope_of = theta_of_layers(c)
    return granite(c, sinks=True, ropes=ropes, rope_of=rope_of)


def _hyperclovax(c: Any) -> ModelConfig:
    norms = PRE_NORM + POST_NORM if c.use_post_norm else PRE_NORM
    return granite(c, norms=norms, logits_scale=c.logits_scaling)


def _smollm3(c: Any) -> ModelConfig:
    return model(c, rope_of=[ALL_LAYERS if turned else None for turned in c.no_rope_layers])


def _cohere(c: Any, **parts: Any) -> ModelConfig:
    refuse(c, logit_scale=None)
    return model(
        c,
        norm="layer",
        norms=("input_norm",),
        parallel=True,
        interleaved=True,
        logits_scale=c.logit_scale,
        qk_norm_kind="layer",
        **parts,
    )


def cohere_compass(c: Any) -> ModelConfig:
    turned = [kind if c.rope_parameters[kind] else None for kind in c.layer_types]
    scale = c.logit_scale or 1.0
    return model(c, norm="layer", norms=("input_norm",), parallel=True, rope_of=turned, logits_scale=scale)


def on_sliding_layers(c: Any) -> list[str | None]:
    """Rotary positions on windowed layers alone, or on all where none has a window."""
    every = c.sliding_window is None
    return [ALL_LAYERS if every or kind == "sliding_attention" else None for kind in c.layer_types]


def _stablelm(c: Any) -> ModelConfig:
    return model(
        c,
        norm="layer",
        norms=("input_norm",) if c.use_parallel_residual else PRE_NORM,
        parallel=c.use_parallel_residual,
        qk_norm="heads" if c.qk_layernorm else "",
        qk_norm_kind="layer",
    )


def _glm(c: Any, norms: tuple[str, ...] = PRE_NORM) -> ModelConfig:
    return model(c, interleaved=True, norms=norms)


def _ministral3(c: Any) -> ModelConfig:
    rope = c.rope_parameters
    rate = rope.get("llama_4_scaling_beta")
    growth = QueryGrowth(rate, rope["original_max_position_embeddings"]) if rate else None
    return model(c, growth=growth)


def _olmo(c: Any) -> ModelConfig:
    return model(c, norm="layer", epsilon=1e-5, clip=c.clip_qkv)


GATED: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "internlm3", "seed_oss", "cwm", "ministral", "iquestcoder"),
        Family(model),
    ),
    "ministral3": Family(_ministral3),
    "qwen3": Family(lambda c: model(c, qk_norm="head")),
    "exaone": Family(
        model,
        LLAMA.but(
            layer="transformer.h.{i}.",
            embed_tokens="transformer.wte",
            norm="transformer.ln_f",
            input_norm="ln_1",
            qkv_proj="attn.attention.q_proj & attn.attention.k_proj & attn.attention.v_proj",
            o_proj="attn.attention.out_proj",
            mlp_norm="ln_2",
            gate_up_proj="mlp.c_fc_0 & mlp.c_fc_1",
            down_proj="mlp.c_proj",
        ),
    ),
    "gemma": Family(_gemma, LLAMA.norms("plus1")),
    "gemma2": Family(_gemma2, _GEMMA),
    "vaultgemma": Family(lambda c: _gemma2(c, PRE_NORM), _GEMMA),
    "gemma3_text": Family(lambda c: _gemma2(c, qk_norm="head"), _GEMMA),
    "phi3": Family(model, _FUSED.but(qkv_proj="self_attn.qkv_proj")),
    "olmo": Family(_olmo, LLAMA.norms("ones")),
    "olmo2": Family(lambda c: model(c, norms=POST_NORM, qk_norm="all"), _POST),
    "olmo3": Family(lambda c: model(c, norms=POST_NORM, qk_norm="all"), _POST),
    "granite": Family(granite),
    "granite_swa": Family(_granite_swa, LLAMA.but(sinks="self_attn.sinks | bare")),
    "hyperclovax": Family(
        _hyperclovax, LLAMA.but(attention_out_norm="post_norm1", mlp_out_norm="post_norm2")
    ),
    "smollm3": Family(_smollm3),
    "cohere": Family(lambda c: _cohere(c, qk_norm="heads" if c.use_qk_norm else "")),
    "cohere2": Family(lambda c: _cohere(c, rope_of=on_sliding_layers(c))),
    "cohere_compass_text": Family(cohere_compass),
    "stablelm": Family(
        _stablelm,
        LLAMA.but(q_norm="self_attn.q_layernorm.norms.{h}", k_norm="self_attn.k_layernorm.norms.{h}"),
    ),
    "glm": Family(_glm, _FUSED),
    "glm4": Family(
        lambda c: _glm(c, PRE_NORM + POST_NORM),
        _FUSED.but(attention_out_norm="post_self_attn_layernorm", mlp_out_norm="post_mlp_layernorm"),
    ),
    "exaone4": Family(
        lambda c: model(c, norms=POST_NORM, qk_norm="head", rope_of=on_sliding_layers(c)), _POST
    ),
    "hunyuan_v1_dense": Family(
        lambda c: model(c, qk_norm="head", qk_norm_after_rope=True),
        LLAMA.but(q_norm="self_attn.query_layernorm", k_norm="self_attn.key_layernorm"),
    ),
    "ernie4_5": Family(lambda c: model(c, interleaved=True)),
    "helium": Family(lambda c: model(c, interleaved=True)),
}
