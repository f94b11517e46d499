"""Tensors of a GGUF file under Hugging Face's names.

In: tensors by GGUF's names, and the configuration. Out: the same records by Hugging Face's names, those
of queries and keys marked where llama.cpp's converter moved their rows.
"""

import re
from typing import Any

from firp.export.sources.gguf.architectures import PAIRED
from firp.export.sources.gguf.config import ROPE_FACTORS
from firp.export.sources.tensor_record import TensorRecord

_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)")


def renamed(tensors: dict[str, TensorRecord], config: dict[str, Any]) -> dict[str, TensorRecord]:
    """Tensors by Hugging Face's names; one that has none there keeps its own.

    Where llama.cpp computes rotary embedding on neighbouring rows, as Meta wrote Llama, and Hugging
    Face pairs row i with row i + head_dim / 2, its converter moved the rows of queries and keys.
    """
    heads = {}
    if config["model_type"] in PAIRED:
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for name, record in tensors.items():
        if name == ROPE_FACTORS:  # a part of the configuration
            continue
        module, _, kind = name.rpartition(".")
        layer = _LAYER.fullmatch(module)
        if layer and layer[2] in _EXPERTS and record.shape[:1] == (config.get("num_experts"),):
            target = f"model.layers.{layer[1]}.mlp.experts.{{}}.{_EXPERTS[layer[2]]}.{kind}"
            found |= {target.format(index): part for index, part in enumerate(_parts(record))}
        elif layer and layer[2] in _LAYER_MODULES:
            record = record._replace(paired_heads=heads.get(layer[2]))
            found[f"model.layers.{layer[1]}.{_LAYER_MODULES[layer[2]]}.{kind}"] = record
        else:
            found[f"{_MODULES[module]}.{kind}" if module in _MODULES else name] = record
    return found


def _parts(record: TensorRecord) -> list[TensorRecord]:
    """The tensors of all experts, which lie one behind the other."""
    count, *shape = record.shape
    size = record.nbytes // count
    return [
        record._replace(shape=tuple(shape), offset=record.offset + index * size, nbytes=size)
        for index in range(count)
    ]
