"""GGUF files of small models, written as llama.cpp's converter writes them, with the package `gguf`.

The names, the moved rows and the metadata follow that converter, not firp's reader.
"""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}  # whole blocks of every type
_ARCHITECTURES = {"mistral": "llama", "cohere": "command-r", "qwen3_moe": "qwen3moe"}
_MOVED = ("llama", "granite", "smollm3")  # that the converter reads as Llama's
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
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _stacked(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors with those of all experts as one, as the converter writes them."""
    found, experts = {}, {}
    for name, values in tensors.items():
        before, _, after = name.partition(".experts.")
        if not after:
            found[name] = values
            continue
        index, _, rest = after.partition(".")
        experts.setdefault(f"{before}.experts.{rest}", {})[int(index)] = values
    return found | {
        name: torch.stack([parts[i] for i in range(len(parts))]) for name, parts in experts.items()
    }


def _unstacked(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if ".experts." not in name:
        return {name: values}
    return {name.replace(".experts.", f".experts.{i}."): part for i, part in enumerate(values)}


def _metadata(config: Any, name: str) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if config.model_type in ("mistral", "cohere2") and config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
    if config.model_type in ("cohere", "cohere2"):
        keys["attention.layer_norm_epsilon"] = config.layer_norm_eps
        keys |= {"logit_scale": config.logit_scale, "rope.scaling.type": "none"}
    else:
        keys["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    if config.model_type == "qwen3_moe":
        keys |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if config.model_type == "granite":
        keys |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
    if (scaling := config.rope_parameters["rope_type"]) in ("linear", "yarn"):
        keys |= {"rope.scaling.type": scaling, "rope.scaling.factor": config.rope_parameters["factor"]}
    if scaling == "yarn":
        original = config.rope_parameters["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
    return {f"{name}.{key}": value for key, value in keys.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        kinds[type(value)](key, value)


def _target(config: Any, name: str, source: str) -> str:
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    return names.get_name(source, try_suffixes=(".weight", ".bias"))


def _add_tensor(
    writer: gguf.GGUFWriter, target: str, values: np.ndarray, kind: str, config: Any, name: str
) -> np.ndarray:
    """Write one tensor; returns the values that it holds, in Hugging Face's order."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    moved = heads.get(target.split(".")[-2]) if name in _MOVED else None
    if values.ndim == 1:
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
