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
}
_MOVED = ("llama", "granite", "smollm3", "olmo", "arcee")  # that the converter reads as Llama's
_ONE_MORE = ("gemma", "gemma2", "gemma3", "nemotron")  # norms whose weights it adds 1 to
_DEQUANTIZED_ONLY = ("Q4_K", "Q5_K", "Q6_K")  # the package cannot quantize to them


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
) -> dict[str, np.ndarray]:
    """Write a model directory as a GGUF file, matrices in `kind`, and return the values that it holds
    by Hugging Face's names. changes: metadata that is written otherwise; None leaves a key out. drop:
    GGUF's names of tensors to leave out. split_bytes: of a part; 0 writes one file.
    """
    config = AutoConfig.from_pretrained(model)
    name = _ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, name, split_max_size=split_bytes)
    keys = _metadata(config, name) | (tokenizer or {}) | (changes or {})
    for key, value in keys.items():
        _add(writer, key, value)
    held = {}
    for source, values in _stacked(load_file(model / "model.safetensors")).items():
        target = _target(config, name, source)
        if target not in drop:
            written = _add_tensor(writer, target, values.float().numpy(), kind, config, name)
            held |= _unstacked(source, written)
    if config.rope_parameters.get("rope_type") == "longrope":
        for length in ("long", "short"):
            factors = np.array(config.rope_parameters[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    if config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


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


def _metadata(config: Any, name: str) -> dict[str, Any]:
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


# what the converter writes of a family beside the usual
_OWN = {
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
    "nemotron": lambda c: {"rope.scaling.type": "none"},
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
    return names.get_name(source.replace(".norms.", "."), try_suffixes=(".weight", ".bias"))


def _add_tensor(
    writer: gguf.GGUFWriter, target: str, values: np.ndarray, kind: str, config: Any, name: str
) -> np.ndarray:
    """Write one tensor; returns the values that it holds, in Hugging Face's order."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
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
