"""Families whose MLPs have no gate, most of which come from GPT-2.

In: transformers' configurations. Out: rows of the table.
"""

import math
from typing import Any

from firp.export.families.names import LLAMA, Names
from firp.export.families.recipe import PRE_NORM, Family, model, refuse
from firp.export.families.ropes import ALL_LAYERS, rope_tables
from firp.runtime.bundle.model_config import ModelConfig, RopeTable

_OPT = LLAMA.but(
    input_norm="self_attn_layer_norm",
    o_proj="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    up_proj="fc1",
    down_proj="fc2",
)
_GPT2 = Names(
    layer="transformer.h.{i}.",
    embed_tokens="transformer.wte",
    embed_positions="transformer.wpe",
    norm="transformer.ln_f",
    lm_head="lm_head",
    input_norm="ln_1",
    qkv_proj="attn.c_attn",
    o_proj="attn.c_proj",
    mlp_norm="ln_2",
    up_proj="mlp.c_fc",
    down_proj="mlp.c_proj",
)
_DENSE = {
    "qkv_proj": "self_attention.query_key_value | grouped",
    "o_proj": "self_attention.dense",
    "up_proj": "mlp.dense_h_to_4h",
    "down_proj": "mlp.dense_4h_to_h",
}
_APERTUS = LLAMA.but(
    input_norm="attention_layernorm",
    mlp_norm="feedforward_layernorm",
    activation="mlp.act_fn.alpha_p & mlp.act_fn.alpha_n & mlp.act_fn.beta & mlp.act_fn.eps | bare",
)
_FC = {"up_proj": "mlp.fc1", "down_proj": "mlp.fc2"}


def _layer_norm(c: Any, **parts: Any) -> ModelConfig:
    """Layer norms and a plain MLP, of four times the width where nothing is said."""
    sizes = (
        getattr(c, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    )
    inner = next((size for size in sizes if size), 4 * c.hidden_size)
    return model(c, **({"norm": "layer", "gated": False, "inner": inner} | parts))


def _gpt2(c: Any) -> ModelConfig:
    refuse(c, scale_attn_by_inverse_layer_idx=True, add_cross_attention=True)
    return _layer_norm(c, ropes={}, learned=True, scale=None if c.scale_attn_weights else 1.0)


def _gpt_bigcode(c: Any) -> ModelConfig:
    refuse(c, add_cross_attention=True)
    scale = None if c.scale_attn_weights else 1.0
    pairs = 1 if c.multi_query else c.num_attention_heads
    return _layer_norm(c, ropes={}, learned=True, scale=scale, key_value_heads=pairs)


def _gpt_neo(c: Any) -> ModelConfig:
    windows = [c.window_size if kind == "local" else None for kind in c.attention_layers]
    return _layer_norm(c, ropes={}, learned=True, scale=1.0, windows=windows)


def _gptj(c: Any) -> ModelConfig:
    refuse(c, rotary_dim=None)
    turns = tuple(10000.0 ** (-2 * pair / c.rotary_dim) for pair in range(c.rotary_dim // 2))
    ropes = {ALL_LAYERS: RopeTable(turns, 1.0)}
    return _layer_norm(c, ropes=ropes, interleaved=True, norms=("input_norm",), parallel=True)


def _gpt_neox(c: Any) -> ModelConfig:
    return _layer_norm(c, parallel=c.use_parallel_residual)


def _phi(c: Any) -> ModelConfig:
    qk_norm = "head" if c.qk_layernorm else ""
    return _layer_norm(c, norms=("input_norm",), parallel=True, qk_norm=qk_norm, qk_norm_kind="layer")


def _falcon(c: Any) -> ModelConfig:
    pairs = c.num_kv_heads if c.new_decoder_architecture or not c.multi_query else 1
    parallel = c.new_decoder_architecture or c.parallel_attn
    norms = PRE_NORM if _two_norms(c) or not parallel else ("input_norm",)
    alibi = {"ropes": {}, "alibi": _slopes(c), "alibi_rounded": True} if c.alibi else {}
    return _layer_norm(c, key_value_heads=pairs, norms=norms, parallel=parallel, **alibi)


def _two_norms(c: Any) -> bool:
    return c.new_decoder_architecture and c.num_ln_in_parallel_attn in (None, 2)


def _falcon_names(c: Any) -> Names:
    names = _GPT2.but(embed_tokens="transformer.word_embeddings", input_norm="input_layernorm", **_DENSE)
    if _two_norms(c):
        return names.but(input_norm="ln_attn", mlp_norm="ln_mlp")
    return names.but(mlp_norm="post_attention_layernorm")


def _opt(c: Any) -> ModelConfig:
    refuse(
        c,
        do_layer_norm_before=False,
        layer_norm_elementwise_affine=False,
        _remove_final_layer_norm=True,
        word_embed_proj_dim=lambda size: size != c.hidden_size,
    )
    return _layer_norm(c, ropes={}, learned=True, epsilon=1e-5)


def _biogpt(c: Any) -> ModelConfig:
    scale = c.hidden_size**0.5 if c.scale_embedding else 1.0
    return _layer_norm(c, ropes={}, learned=True, epsilon=1e-5, embedding_scale=scale)


def _slopes(c: Any) -> tuple[float, ...]:
    """What each head adds to a score for each position of its key (Press et al. 2022)."""
    heads = c.num_attention_heads
    closest = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * head / closest) for head in range(1, closest + 1)]
    return (*slopes, *(2 ** (-4 * head / closest) for head in range(1, 2 * (heads - closest), 2)))


def _bloom(c: Any) -> ModelConfig:
    refuse(c, apply_residual_connection_post_layernorm=True)
    return _layer_norm(
        c,
        ropes={},
        alibi=_slopes(c),
        embedding_norm="layer",
        activation="gelu_tanh",
        inner=4 * c.hidden_size,
    )


def _mpt(c: Any) -> ModelConfig:
    attention = c.attn_config
    refuse(c, learned_pos_emb=False, logit_scale=lambda scale: scale)
    refuse(attention, alibi=False, qk_ln=True, prefix_lm=True, attn_type="multiquery_attention")
    whole = 2 ** math.ceil(math.log2(c.num_attention_heads))
    slopes = [2 ** (-attention.alibi_bias_max * head / whole) for head in range(1, whole + 1)]
    if whole != c.num_attention_heads:
        slopes = (slopes[1::2] + slopes[::2])[: c.num_attention_heads]
    return _layer_norm(
        c,
        ropes={},
        alibi=tuple(slopes),
        activation="gelu",
        inner=c.expansion_ratio * c.hidden_size,
        clip=attention.clip_qkv,
        scale=attention.softmax_scale,
    )


def _nanochat(c: Any) -> ModelConfig:
    ropes = {
        name: RopeTable(tuple(-turn for turn in table.frequencies), table.scale)
        for name, table in rope_tables(c).items()
    }
    return model(
        c, gated=False, ropes=ropes, qk_norm="head", qk_norm_after_rope=True, embedding_norm="rms",
        logits_softcap=c.final_logit_softcapping,
    )  # fmt: skip


def _persimmon(c: Any) -> ModelConfig:
    return _layer_norm(c, qk_norm="head" if c.qk_layernorm else "", qk_norm_kind="layer")


def _apertus(c: Any) -> ModelConfig:
    refuse(c, output_vocab_size=lambda rows: rows)  # fewer than there are tokens
    return model(c, gated=False, qk_norm="head")


PLAIN_MLP: dict[str, Family] = {
    "gpt2": Family(
        _gpt2,
        _GPT2.but(
            qkv_proj="attn.c_attn | transposed",
            o_proj="attn.c_proj | transposed",
            up_proj="mlp.c_fc | transposed",
            down_proj="mlp.c_proj | transposed",
        ),
    ),
    "gpt_bigcode": Family(
        _gpt_bigcode, lambda c: _GPT2 if c.multi_query else _GPT2.but(qkv_proj="attn.c_attn | grouped")
    ),
    "gpt_neo": Family(
        _gpt_neo,
        _GPT2.but(
            qkv_proj="attn.attention.q_proj & attn.attention.k_proj & attn.attention.v_proj",
            o_proj="attn.attention.out_proj",
        ),
    ),
    "gpt_neox": Family(
        _gpt_neox,
        LLAMA.but(
            **_DENSE | {"qkv_proj": "attention.query_key_value | grouped", "o_proj": "attention.dense"},
            layer="gpt_neox.layers.{i}.",
            embed_tokens="gpt_neox.embed_in",
            norm="gpt_neox.final_layer_norm",
            lm_head="embed_out",
        ),
    ),
    "gptj": Family(
        _gptj,
        _GPT2.but(
            qkv_proj="attn.q_proj & attn.k_proj & attn.v_proj",
            o_proj="attn.out_proj",
            up_proj="mlp.fc_in",
            down_proj="mlp.fc_out",
        ),
    ),
    "codegen": Family(
        _gptj,
        _GPT2.but(
            qkv_proj="attn.qkv_proj | codegen",
            o_proj="attn.out_proj",
            up_proj="mlp.fc_in",
            down_proj="mlp.fc_out",
        ),
    ),
    "phi": Family(
        _phi,
        LLAMA.but(
            **_FC,
            o_proj="self_attn.dense",
            norm="model.final_layernorm",
            q_norm="self_attn.q_layernorm",
            k_norm="self_attn.k_layernorm",
        ),
    ),
    "starcoder2": Family(_layer_norm, LLAMA.but(up_proj="mlp.c_fc", down_proj="mlp.c_proj")),
    "falcon": Family(_falcon, _falcon_names),
    "opt": Family(
        _opt,
        _OPT.but(
            layer="model.decoder.layers.{i}.",
            embed_tokens="model.decoder.embed_tokens",
            embed_positions="model.decoder.embed_positions | skip2",
            norm="model.decoder.final_layer_norm",
        ),
    ),
    "biogpt": Family(
        _biogpt,
        _OPT.but(
            layer="biogpt.layers.{i}.",
            embed_tokens="biogpt.embed_tokens",
            embed_positions="biogpt.embed_positions | skip2",
            norm="biogpt.layer_norm",
            lm_head="output_projection",
        ),
    ),
    "bloom": Family(
        _bloom,
        _GPT2.but(
            **_DENSE,
            embed_tokens="transformer.word_embeddings",
            embed_norm="transformer.word_embeddings_layernorm",
            input_norm="input_layernorm",
            mlp_norm="post_attention_layernorm",
        ),
    ),
    "mpt": Family(
        _mpt,
        _GPT2.but(
            layer="transformer.blocks.{i}.",
            norm="transformer.norm_f",
            input_norm="norm_1",
            qkv_proj="attn.Wqkv",
            o_proj="attn.out_proj",
            mlp_norm="norm_2",
            up_proj="ffn.up_proj",
            down_proj="ffn.down_proj",
        ),
    ),
    "nemotron": Family(_layer_norm, LLAMA.norms("plus1")),
    **dict.fromkeys(("apertus", "apertus1p5_text"), Family(_apertus, _APERTUS)),
    "arcee": Family(lambda c: model(c, gated=False)),
    "jais2": Family(_layer_norm),
    "persimmon": Family(
        _persimmon,
        LLAMA.but(
            **_DENSE | {"qkv_proj": "self_attn.query_key_value | grouped", "o_proj": "self_attn.dense"},
            norm="model.final_layernorm",
            q_norm="self_attn.q_layernorm",
            k_norm="self_attn.k_layernorm",
        ),
    ),
    "nanochat": Family(_nanochat, LLAMA.but(**_FC, embed_norm="").norms("ones")),
}
