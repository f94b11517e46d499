"""GGUF files of small models, written as llama.cpp's converter writes them, with the package `gguf`.

The names, the moved rows and the metadata follow that converter, not firp's reader.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig

from firp.export.weights.stream import read_chunks

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}  # whole blocks of every type
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "cohere": "command-r",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmo3": "olmo2",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "hunyuan_v1_dense": "hunyuan-dense",
    "gpt_oss": "gpt-oss",
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "youtu", "glm4_moe_lite"), "deepseek2"),
    **dict.fromkeys(("internlm3", "iquestcoder"), "llama"),
    "granitemoeshared": "granitemoe",
    **dict.fromkeys(("glm4_moe", "solar_open"), "glm4moe"),
    "exaone_moe": "exaone-moe",
    "ernie4_5_moe": "ernie4_5-moe",
    "minimax_m2": "minimax-m2",
    "hunyuan_v1_moe": "hunyuan-moe",
    "ministral3": "mistral3",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "glm": "chatglm",
}
_MOVED = (
    "llama",
    "granite",
    "granitemoe",
    "smollm3",
    "olmo",
    "arcee",
    "mistral3",
)  # that the converter reads as Llama's
_ONE_MORE = ("gemma", "gemma2", "gemma3", "nemotron")  # norms whose weights it adds 1 to
_DEQUANTIZED_ONLY = ("Q4_K", "Q5_K", "Q6_K")  # the package cannot quantize to them


def architecture_name(model_type: str) -> str:
    """GGUF's name of a family."""
    return _ARCHITECTURES.get(model_type, model_type)


def random_blocks(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Bytes [..., n] of valid blocks: random, with scales that are small finite numbers."""
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (math.prod(shape) // values, nbytes), dtype=np.uint8)
    scales = rng.uniform(1e-4, 4e-4, (len(blocks), 2))
    if kind == "Q6_K":  # one scale, at the end, and with larger factors
        blocks[:, -2:] = (scales[:, :1] / 4).astype(np.float16).view(np.uint8)
    else:
        blocks[:, :4] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_gguf(
    path: Path,
    model: Path,
    kind: str = "F32",
    changes: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    split_bytes: int = 0,
    more: dict[str, np.ndarray] | None = None,
    before_mla: bool = False,
    arranged: str = "F32",
) -> dict[str, np.ndarray]:
    """Write a model directory as a GGUF file, matrices in `kind`, and return the values that it holds
    by Hugging Face's names. changes: metadata that is written otherwise; None leaves a key out. drop:
    GGUF's names of tensors to leave out. split_bytes: of a part; 0 writes one file. more: other
    tensors. before_mla: as old versions wrote models with latent rows. arranged:
    the type of what the converter puts otherwise.
    """
    config = AutoConfig.from_pretrained(model)
    name = architecture_name(config.model_type)
    if name == "granitemoehybrid":  # without states
        name = "granitemoe" if config.num_local_experts else "granite"
    writer = gguf.GGUFWriter(path, name, split_max_size=split_bytes)
    keys = _metadata(config, name, before_mla) | (tokenizer or {}) | (changes or {})
    for key, value in keys.items():
        _add(writer, key, value)
    held = {}
    tensors = _stacked(load_file(model / "model.safetensors"))
    for number in ("alpha_p", "alpha_n", "beta", "eps"):  # of Apertus, each of all layers
        sources = sorted(source for source in tensors if source.endswith(f".act_fn.{number}"))
        held |= {source: tensors.pop(source).numpy() for source in sources}
        if sources:
            writer.add_array(f"xielu.{number}", [held[source].item() for source in sources])
    for source, tensor in tensors.items():
        values = tensor.float().numpy()
        whole = before_mla and "kv_b_proj" in source
        pieces = None if whole else put_otherwise(config, source, values)
        for target, piece in (pieces or {}).items():
            if target in drop:
                continue
            in_blocks = piece.ndim > 1 and target.endswith("weight")
            kind_of = gguf.GGMLQuantizationType[arranged if in_blocks else "F32"]
            blocks = gguf.quants.quantize(np.ascontiguousarray(piece, np.float32), kind_of)
            writer.add_tensor(target, blocks, raw_dtype=kind_of)
            piece[...] = gguf.quants.dequantize(blocks, kind_of)  # a view of `values`
        held |= {source: values} if pieces else {}
        target = None if pieces else _target(config, name, source)
        if target and target not in drop:
            written = _add_tensor(writer, target, values, kind, config, name)
            held |= _unstacked(source, written)
    for target, piece in (more or {}).items():
        writer.add_tensor(target, piece)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            if f"rope_factors_{length}.weight" not in drop:
                writer.add_tensor(f"rope_factors_{length}.weight", factors)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def values_of(checkpoint: Any) -> dict[str, np.ndarray]:
    """The values of a checkpoint's tensors, those of experts that have one in common joined again."""
    found: dict[str, list[np.ndarray]] = {}
    for name, record in checkpoint.tensors.items():
        values = np.concatenate(list(read_chunks(name, record))).astype(np.float32)
        found.setdefault(name.partition("[")[0], []).append(values.reshape(record.shape))
    return {name: parts[0] if len(parts) == 1 else np.stack(parts) for name, parts in found.items()}


def _stacked(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors with those of all experts, or norms of all heads, as one, as the converter writes them."""
    found, together = {}, {}
    for name, values in tensors.items():
        part = re.search(r"\.(experts|norms)\.(\d+)\.", name)
        if not part:
            found[name] = values
            continue
        whole = name.replace(part[0], ".experts." if part[1] == "experts" else ".norms.")
        together.setdefault(whole, {})[int(part[2])] = values
    return found | {
        name: torch.stack([parts[i] for i in range(len(parts))]) for name, parts in together.items()
    }


def _unstacked(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    part = re.search(r"\.(experts|norms)\.", name)
    if not part:
        return {name: values}
    return {name.replace(part[0], f"{part[0]}{i}."): each for i, each in enumerate(values)}


def put_otherwise(config: Any, source: str, values: np.ndarray) -> dict[str, np.ndarray] | None:
    """GGUF's tensors that the converter makes of one that it does not only rename; None of another."""
    layer = next((part for part in source.split(".") if part.isdigit()), "")
    made = None
    if config.model_type == "gpt2" and source.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        module = {"c_attn": "attn_qkv", "c_fc": "ffn_up"}.get(source.split(".")[-2])
        module = module or ("attn_output" if ".attn." in source else "ffn_down")
        made = {f"{module}.weight": values.T}
    elif "query_key_value" in source:
        heads = config.num_attention_heads
        groups = config.num_kv_heads if config.model_type == "falcon" else heads
        split = values.reshape(groups, heads // groups + 2, -1, *values.shape[1:])
        parts = (split[:, :-2], split[:, -2], split[:, -1])
        rows = np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
        made = {f"attn_qkv.{source.split('.')[-1]}": rows}
    elif source.endswith(("e_score_correction_bias", ".expert_bias")):
        made = {"exp_probs_b.bias": values}
    elif source.endswith("self_attn.sinks"):
        made = {"attn_sinks.weight": values}
    elif source.endswith("kv_b_proj.weight") and config.model_type != "minicpm3":
        size = config.qk_nope_head_dim
        split = values.reshape(config.num_attention_heads, size + config.v_head_dim, -1)
        made = {"attn_k_b.weight": split[:, :size].swapaxes(1, 2), "attn_v_b.weight": split[:, size:]}
    elif source.endswith(("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias")):  # gpt-oss
        kind = "bias" if source.endswith("_bias") else "weight"
        rows = values if kind == "bias" else values.swapaxes(1, 2)
        made = {f"ffn_gate_exps.{kind}": rows[:, ::2], f"ffn_up_exps.{kind}": rows[:, 1::2]}
    elif source.endswith("mlp.experts.down_proj"):
        made = {"ffn_down_exps.weight": values.swapaxes(1, 2)}
    elif source.endswith("mlp.experts.down_proj_bias"):
        made = {"ffn_down_exps.bias": values}
    elif source.endswith("input_linear.weight"):
        end = "_exps" if "block_sparse_moe" in source else "_shexp" if config.num_local_experts else ""
        gate, up = np.split(values, 2, axis=-2)
        made = {f"ffn_gate{end}.weight": gate, f"ffn_up{end}.weight": up}
    elif source.endswith("shared_mlp.output_linear.weight") and not config.num_local_experts:
        made = {"ffn_down.weight": values}
    elif source.endswith("block_sparse_moe.output_linear.weight"):
        made = {"ffn_down_exps.weight": values}
    elif ".ffn.experts.mlp." in source:  # DBRX
        rows = values.reshape(config.ffn_config.moe_num_experts, -1, values.shape[1])
        module = {"w1": "gate", "v1": "up", "w2": "down"}[source.split(".")[-1]]
        made = {f"ffn_{module}_exps.weight": rows.swapaxes(1, 2) if module == "down" else rows}
    return made and {f"blk.{layer}.{name}": piece for name, piece in made.items()}


def _metadata(config: Any, name: str, before_mla: bool) -> dict[str, Any]:
    if config.model_type in _WITHOUT_ROPE:
        return {f"{name}.{key}": value for key, value in _WITHOUT_ROPE[config.model_type](config).items()}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rms := getattr(config, "rms_norm_eps", None):
        keys["attention.layer_norm_rms_epsilon"] = rms
    epsilons = (getattr(config, each, None) for each in ("layer_norm_eps", "norm_epsilon", "norm_eps"))
    if config.model_type == "olmo":
        keys["attention.layer_norm_epsilon"] = 1e-5
    elif epsilon := next(filter(None, epsilons), None):
        keys["attention.layer_norm_epsilon"] = epsilon
    if (scaling := rope["rope_type"]) in ("linear", "yarn"):
        keys |= {"rope.scaling.type": scaling, "rope.scaling.factor": rope["factor"]}
    if scaling == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    keys |= _OWN.get(config.model_type, lambda c: {})(config)
    if name == "deepseek2":
        keys |= _latent(config, before_mla)
    return {f"{name}.{key}": value for key, value in keys.items() if value is not None}


def _window(c: Any) -> dict[str, Any]:
    return {"attention.sliding_window": c.sliding_window} if c.sliding_window else {}


def _windowed(c: Any) -> list[bool]:
    return [kind == "sliding_attention" for kind in c.layer_types]


def _scales(c: Any) -> dict[str, Any]:
    return {
        "attention.scale": c.attention_multiplier,
        "embedding_scale": c.embedding_multiplier,
        "residual_scale": c.residual_multiplier,
        "logit_scale": c.logits_scaling,
    }


def _used(c: Any) -> dict[str, Any]:
    count = getattr(c, "num_local_experts", None) or c.num_experts
    return {"expert_count": count, "expert_used_count": c.num_experts_per_tok}


def _cohere(c: Any) -> dict[str, Any]:
    return {"logit_scale": c.logit_scale, "rope.scaling.type": "none"}


def _routed(c: Any) -> dict[str, Any]:
    return {
        "expert_count": getattr(c, "n_routed_experts", None) or c.num_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_shared_count": getattr(c, "n_shared_experts", None) or c.num_shared_experts,
        "expert_group_count": getattr(c, "n_group", None),
        "expert_group_used_count": getattr(c, "topk_group", None),
        "leading_dense_block_count": getattr(c, "first_k_dense_replace", 0),
        "expert_weights_scale": getattr(c, "routed_scaling_factor", None),
        "expert_weights_norm": getattr(c, "norm_topk_prob", None) or None,
        "expert_gating_func": 2,
    }


def _latent(c: Any, before_mla: bool) -> dict[str, Any]:
    key, rope = c.qk_nope_head_dim + c.qk_rope_head_dim, c.rope_parameters
    keys = {
        "attention.q_lora_rank": c.q_lora_rank,
        "attention.kv_lora_rank": c.kv_lora_rank,
        "rope.dimension_count": c.qk_rope_head_dim,
    }
    if before_mla or c.model_type == "minicpm3":
        keys |= {"attention.key_length": key, "attention.value_length": c.v_head_dim}
    else:
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
            "attention.value_length": c.kv_lora_rank,
            "attention.key_length_mla": key,
            "attention.value_length_mla": c.v_head_dim,
        }
    if "mscale_all_dim" in rope:
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return keys


def _deepseek_v2(c: Any) -> dict[str, Any]:
    groups = (c.n_group, c.topk_group) if c.topk_method != "greedy" else (1, 1)
    named = dict(zip(("expert_group_count", "expert_group_used_count"), groups, strict=True))
    return _routed(c) | named | {"expert_gating_func": None, "expert_weights_norm": None}


def _dense_latent(c: Any) -> dict[str, Any]:
    return {
        "leading_dense_block_count": c.num_hidden_layers,
        "expert_feed_forward_length": c.intermediate_size,
        "expert_shared_count": 0,
    }


def _ernie_moe(c: Any) -> dict[str, Any]:
    return {
        "expert_count": c.moe_num_experts,
        "expert_used_count": c.moe_k,
        "interleave_moe_layer_step": c.moe_layer_interval,
        "leading_dense_block_count": c.moe_layer_start_index,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_shared_count": c.moe_num_shared_experts,
        "expert_shared_feed_forward_length": c.intermediate_size // c.num_key_value_heads,
    }


def _gpt2(c: Any) -> dict[str, Any]:
    return {
        "block_count": c.n_layer,
        "context_length": c.n_positions,
        "embedding_length": c.n_embd,
        "feed_forward_length": 4 * c.n_embd,
        "attention.head_count": c.n_head,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }


def _bloom(c: Any) -> dict[str, Any]:
    return {
        "context_length": c.seq_length,
        "embedding_length": c.hidden_size,
        "feed_forward_length": 4 * c.hidden_size,
        "block_count": c.n_layer,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_head,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }


def _mpt(c: Any) -> dict[str, Any]:
    return {
        "context_length": c.max_seq_len,
        "embedding_length": c.d_model,
        "block_count": c.n_layers,
        "feed_forward_length": 4 * c.d_model,
        "attention.head_count": c.n_heads,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.clamp_kqv": c.attn_config.clip_qkv,
        "attention.max_alibi_bias": float(c.attn_config.alibi_bias_max),
    }


def _gpt_neox(c: Any) -> dict[str, Any]:
    head_dim = c.hidden_size // c.num_attention_heads
    return {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "rope.dimension_count": int(c.rope_parameters["partial_rotary_factor"] * head_dim),
        "attention.head_count": c.num_attention_heads,
        "use_parallel_residual": c.use_parallel_residual,
        "attention.layer_norm_epsilon": c.layer_norm_eps,
    }


def _falcon(c: Any) -> dict[str, Any]:
    return {
        "context_length": 2048,
        "tensor_data_layout": "jploski",
        "embedding_length": c.hidden_size,
        "feed_forward_length": 4 * c.hidden_size,
        "block_count": c.num_hidden_layers,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }


def _dbrx(c: Any) -> dict[str, Any]:
    return {
        "block_count": c.n_layers,
        "context_length": c.max_seq_len,
        "embedding_length": c.d_model,
        "feed_forward_length": c.ffn_config.ffn_hidden_size,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.attn_config.kv_n_heads,
        "rope.freq_base": float(c.rope_parameters["rope_theta"]),
        "attention.clamp_kqv": c.attn_config.clip_qkv,
        "expert_count": c.ffn_config.moe_num_experts,
        "expert_used_count": c.ffn_config.moe_top_k,
        "attention.layer_norm_epsilon": 1e-5,
    }


_SSM = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")
# families of which the converter writes a few keys
_WITHOUT_ROPE = {
    "gpt2": _gpt2,
    "gpt_bigcode": lambda c: _gpt2(c) | {"attention.head_count_kv": 1},
    "bloom": _bloom,
    "mpt": _mpt,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "dbrx": _dbrx,
}


# what the converter writes of a family beside the usual
_OWN = {
    "gpt_oss": lambda c: _used(c) | _window(c) | {"expert_feed_forward_length": c.intermediate_size},
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _routed,
    "glm4_moe_lite": lambda c: _routed(c) | {"leading_dense_block_count": 1},
    "youtu": _dense_latent,
    "minicpm3": lambda c: _latent(c, True) | {"attention.value_length": None},
    "glm4_moe": _routed,
    "solar_open": _routed,
    "dots1": _routed,
    "granitemoe": lambda c: _scales(c) | _used(c),
    "granitemoehybrid": lambda c: (
        _scales(c)
        | {"expert_count": c.num_local_experts, "expert_used_count": c.num_experts_per_tok}
        | {"expert_shared_feed_forward_length": c.shared_intermediate_size}
        | dict.fromkeys((f"ssm.{size}" for size in _SSM), 4)
        | {"attention.head_count_kv": [c.num_key_value_heads] * c.num_hidden_layers}
        | {"rope.scaling.finetuned": True}
    ),
    "granitemoeshared": lambda c: (
        _scales(c) | _used(c) | {"expert_shared_feed_forward_length": c.shared_intermediate_size}
    ),
    "exaone4": lambda c: _window(c) | {"attention.sliding_window_pattern": _windowed(c)},
    "exaone_moe": lambda c: (
        _routed(c)
        | _window(c)
        | {
            "attention.sliding_window_pattern": _windowed(c),
            "expert_shared_feed_forward_length": c.moe_intermediate_size * c.num_shared_experts,
            "rope.scaling.type": "none",
        }
    ),
    "afmoe": lambda c: (
        _routed(c)
        | _window(c)
        | {
            "leading_dense_block_count": c.num_dense_layers,
            "expert_weights_norm": True,
            "expert_weights_scale": c.route_scale,
        }
    ),
    "ernie4_5_moe": _ernie_moe,
    "minimax_m2": lambda c: (
        _used(c) | {"expert_feed_forward_length": c.intermediate_size, "expert_gating_func": 2}
    ),
    "hunyuan_v1_moe": lambda c: {
        "expert_count": c.num_experts,
        "expert_used_count": c.moe_topk[0],
        "expert_feed_forward_length": c.intermediate_size,
        "expert_shared_feed_forward_length": c.intermediate_size,
        "expert_shared_count": 1,
    },
    "ministral3": lambda c: {
        "rope.scaling.yarn_log_multiplier": c.rope_parameters["mscale_all_dim"],
        "attention.temperature_scale": c.rope_parameters["llama_4_scaling_beta"],
    },
    "phimoe": lambda c: (
        _used(c)
        | {
            "attention.sliding_window": c.sliding_window or 0,
            "rope.scaling.original_context_length": c.rope_parameters["original_max_position_embeddings"],
            "rope.scaling.attn_factor": c.rope_parameters["short_mscale"],
        }
    ),
    "mistral": _window,
    "mixtral": lambda c: _used(c) | _window(c),
    "cohere": _cohere,
    "cohere2": lambda c: _cohere(c) | _window(c),
    "granite": _scales,
    "qwen3_moe": lambda c: _used(c) | {"expert_feed_forward_length": c.moe_intermediate_size},
    "qwen2_moe": lambda c: (
        _used(c)
        | {
            "expert_feed_forward_length": c.moe_intermediate_size,
            "expert_shared_feed_forward_length": c.shared_expert_intermediate_size,
        }
    ),
    "olmoe": _used,
    "olmo": lambda c: {"attention.clamp_kqv": c.clip_qkv},
    "olmo3": lambda c: _window(c) | {"attention.sliding_window_pattern": _windowed(c)},
    "gemma2": lambda c: (
        _window(c)
        | {
            "attn_logit_softcapping": c.attn_logit_softcapping,
            "final_logit_softcapping": c.final_logit_softcapping,
        }
    ),
    "gemma3_text": lambda c: (
        _window(c)
        | {
            "final_logit_softcapping": c.final_logit_softcapping,
            "rope.freq_base_swa": float(c.rope_parameters["sliding_attention"]["rope_theta"]),
        }
    ),
    "phi3": lambda c: {
        "attention.sliding_window": c.sliding_window or 0,
        "rope.scaling.original_context_length": c.original_max_position_embeddings,
        "rope.scaling.attn_factor": c.rope_parameters.get("attention_factor"),
    },
    "stablelm": lambda c: {"use_parallel_residual": c.use_parallel_residual},
    "nemotron": lambda c: {
        "rope.scaling.type": "none",
        "attention.layer_norm_rms_epsilon": c.norm_eps,
    },
    "hunyuan_v1_dense": lambda c: {"rope.scaling.type": "none", "rope.scaling.factor": 1.0},
}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        kinds[type(value)](key, value)


def _target(config: Any, name: str, source: str) -> str:
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    source = source.replace(".norms.", ".")
    if name == "bloom":
        source = source.removeprefix("transformer.")
    return names.get_name(source, try_suffixes=(".weight", ".bias"))


def _add_tensor(
    writer: gguf.GGUFWriter, target: str, values: np.ndarray, kind: str, config: Any, name: str
) -> np.ndarray:
    """Write one tensor; returns the values that it holds, in Hugging Face's order."""
    heads = {"attn_q": config.num_attention_heads}
    heads["attn_k"] = getattr(config, "num_key_value_heads", None)
    moved = heads.get(target.split(".")[-2]) if name in _MOVED else None
    if name in _ONE_MORE and target.endswith("norm.weight"):
        values = values + np.float32(1)
        writer.add_tensor(target, values)
        return values - np.float32(1)
    if values.ndim == 1 or "_norm." in target:
        writer.add_tensor(target, _moved(values, moved))
        return values
    quantization = gguf.GGMLQuantizationType[kind]
    if kind in _DEQUANTIZED_ONLY:
        blocks = random_blocks(values.shape, kind, seed=len(writer.tensors[0]))
    else:
        blocks = gguf.quants.quantize(values, quantization)
    writer.add_tensor(target, np.ascontiguousarray(_moved(blocks, moved)), raw_dtype=quantization)
    return gguf.quants.dequantize(blocks, quantization).astype(np.float32)


def _moved(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Rows of queries or keys as the converter orders those of Llama; others as they are."""
    if heads is None:
        return rows
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _llama3_factors(config: Any) -> np.ndarray:
    """What Llama 3 divides its frequencies by, one by one as the converter computes them."""
    rope = config.rope_parameters
    low, high, old = (
        rope[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    frequencies = rope["rope_theta"] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    factors = []
    for wavelength in 2 * math.pi / frequencies:
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def tokenizer_metadata(tokenizer: Tokenizer, model: str, pre: str, /, **keys: Any) -> dict[str, Any]:
    """The keys of a BPE tokenizer, as the converter writes them. keys: more of `tokenizer.ggml.*`;
    None leaves one out.
    """
    state = json.loads(tokenizer.to_str())
    added = {token["content"]: token["special"] for token in state["added_tokens"]}
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.get)
    kinds = [{None: 1, True: 3, False: 4}[added.get(token)] for token in tokens]
    found = {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (found | keys).items()}
