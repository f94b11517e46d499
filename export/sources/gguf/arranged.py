"""Tensors of Hugging Face's that a GGUF file keeps in another way: in two, in other rows, or turned.

In: the file's tensors of one of Hugging Face's. Out: that one, as a record of what the file keeps.
"""

from collections.abc import Callable
from typing import NamedTuple

from firp.export.sources.tensor_record import TensorRecord, joined
from firp.runtime.bundle.model_config import ModelConfig


class Arranged(NamedTuple):
    """One of them."""

    modules: tuple[str, ...]  # the file's tensors of a layer
    make: Callable[[list[TensorRecord], ModelConfig], TensorRecord]


def _one(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    return parts[0]


def _row(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    """A vector, or a matrix of one row, as the latter."""
    return parts[0]._replace(shape=(1, *parts[0].shape[-1:]))


def _vector(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    """A number as a vector of one."""
    return parts[0]._replace(shape=(1,))


def _turned(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    """What the converter transposed."""
    return parts[0]._replace(shape=parts[0].shape[::-1], turned=True)


def _joined(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    return joined(parts)


def _woven(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    return joined(parts, woven=True)


def _woven_turned(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    return _turned([_woven(parts, config)], config)


def _grouped(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    """Heads in groups of queries, their key, their value, where a file has all queries, keys, values."""
    a = config.attention
    heads = parts[0].apart(a.num_heads + 2 * a.num_key_value_heads)
    each = a.num_heads // a.num_key_value_heads
    keys, values = a.num_heads, a.num_heads + a.num_key_value_heads
    return joined(
        [
            part
            for group in range(a.num_key_value_heads)
            for part in (
                *heads[group * each : (group + 1) * each],
                heads[keys + group],
                heads[values + group],
            )
        ]
    )


def _heads(parts: list[TensorRecord], config: ModelConfig) -> TensorRecord:
    """What makes keys and values of a latent row, head by head; a file has that of keys transposed."""
    keys, values = (part.apart(config.attention.num_heads) for part in parts)
    pairs = zip(keys, values, strict=True)
    return joined([part for key, value in pairs for part in (_turned([key], config), value)])


def _both(module: str, kept: str, make: Callable) -> dict[str, Arranged]:
    """Weight and bias alike."""
    return {f"{module}.{kind}": Arranged((f"{kept}.{kind}",), make) for kind in ("weight", "bias")}


def _bias_of_selection(module: str, make: Callable = _one) -> dict[str, Arranged]:
    return {module: Arranged(("exp_probs_b.bias",), make)}


GPT2 = {
    f"{module}.weight": Arranged((f"{kept}.weight",), _turned)
    for module, kept in (
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    )
}
GROUPED = _both("self_attention.query_key_value", "attn_qkv", _grouped)
NEOX = _both("attention.query_key_value", "attn_qkv", _grouped)
DBRX = {
    "ffn.experts.mlp.w1": Arranged(("ffn_gate_exps.weight",), _one),
    "ffn.experts.mlp.v1": Arranged(("ffn_up_exps.weight",), _one),
    "ffn.experts.mlp.w2": Arranged(("ffn_down_exps.weight",), _turned),
}
GPT_OSS = {
    "self_attn.sinks": Arranged(("attn_sinks.weight",), _one),
    "mlp.experts.gate_up_proj": Arranged(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _woven_turned),
    "mlp.experts.gate_up_proj_bias": Arranged(("ffn_gate_exps.bias", "ffn_up_exps.bias"), _woven),
    "mlp.experts.down_proj": Arranged(("ffn_down_exps.weight",), _turned),
    "mlp.experts.down_proj_bias": Arranged(("ffn_down_exps.bias",), _one),
}
GRANITE_MOE = {
    "block_sparse_moe.input_linear.weight": Arranged(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _joined),
    "block_sparse_moe.output_linear.weight": Arranged(("ffn_down_exps.weight",), _one),
    "shared_mlp.input_linear.weight": Arranged(("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), _joined),
    "shared_mlp.output_linear.weight": Arranged(("ffn_down_shexp.weight",), _one),
}
SELECTION = _bias_of_selection("mlp.gate.e_score_correction_bias")
EXAONE_MOE = _bias_of_selection("mlp.e_score_correction_bias")
MINIMAX = _bias_of_selection("block_sparse_moe.e_score_correction_bias")
ERNIE = _bias_of_selection("mlp.moe_statics.e_score_correction_bias", _row)
AFMOE = _bias_of_selection("mlp.expert_bias")
APERTUS = {
    f"mlp.act_fn.{name}": Arranged((f"xielu.{name}",), make)
    for name, make in (("alpha_p", _vector), ("alpha_n", _vector), ("beta", _one), ("eps", _one))
}
LATENT = SELECTION | {"self_attn.kv_b_proj.weight": Arranged(("attn_k_b.weight", "attn_v_b.weight"), _heads)}
