"""What a GGUF file says of its model, in Hugging Face's words.

In: metadata, and tensors by GGUF's names. Out: the dictionary that config.json would hold. A key that
changes what the model computes and is not understood is refused by name, for a model that is almost
right would pass every comparison with itself.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from firp.export.sources.gguf.architectures import ARCHITECTURES, architecture_of
from firp.export.sources.gguf.file import GgufFile
from firp.export.sources.gguf.metadata import Metadata
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.errors import CheckpointError

ROPE_FACTORS = "rope_freqs.weight"  # what each frequency of rotary embedding is divided by
_LONG_FACTORS, _SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# tensors that are parts of the configuration
CONFIG_TENSORS = (ROPE_FACTORS, _LONG_FACTORS, _SHORT_FACTORS)
_SCALING_FACTOR, _ATTENTION_FACTOR = "rope.scaling.factor", "rope.scaling.attn_factor"
_ORIGINAL = "rope.scaling.original_context_length"
_YARN_FACTOR = "rope.scaling.yarn_attn_factor"
_DEFAULT_ROPE_BASE = 10000.0  # llama.cpp's, where a file says nothing


def transformers_dictionary(path: Path, file: GgufFile) -> dict[str, Any]:
    """What config.json would hold. Raises CheckpointError for metadata that is missing, not
    understood, or contradicts the tensors.
    """
    data = Metadata(path, file.metadata, ARCHITECTURES)
    theirs = architecture_of(data, file.tensors)
    hidden_size, heads = data.integer("embedding_length"), data.integer("attention.head_count")
    head_dim = data.integer("attention.key_length", max(1, hidden_size // heads))
    turned = data.integer("rope.dimension_count", head_dim)
    sizes = {"attention.value_length": data.integer("attention.value_length", head_dim)}
    if not theirs.partial:
        sizes["rope.dimension_count"] = turned
    for key, size in ({} if theirs.latent else sizes).items():
        if size != head_dim:
            raise data.bad(key, size, f"{head_dim}, the features of a key")
    layers = _num_layers(data, file)
    later = _later_layers(data, layers)
    config = {
        "model_type": theirs.model_type,
        "hidden_act": "silu",
        "vocab_size": _vocab_size(data, file),
        "hidden_size": hidden_size,
        "intermediate_size": data.integer("feed_forward_length"),
        "num_hidden_layers": layers - later,
        "num_attention_heads": heads,
        "num_key_value_heads": data.integer("attention.head_count_kv", heads),
        "head_dim": turned if theirs.latent else head_dim,
        "max_position_embeddings": data.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "num_nextn_predict_layers": later,
    }
    if not theirs.unturned:
        share = {"partial_rotary_factor": turned / head_dim} if theirs.partial else {}
        config["rope_parameters"] = _rope_parameters(data, file, turned) | share
    config |= theirs.further(data, file.tensors, config)
    data.check_all_asked()
    if config["head_dim"] is None:  # of a family that takes no such word
        del config["head_dim"]
    return config


def _vocab_size(data: Metadata, file: GgufFile) -> int:
    """Rows of the embedding, which the rest must agree with."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("no embedding", got=f"'{data.path}' without token_embd.weight, a matrix")
    rows = embedding.shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    told = {"vocab_size": data.integer("vocab_size", rows)}
    if isinstance(tokens, list):
        told["tokens"] = len(tokens)
    for what, size in told.items():
        if size != rows:
            raise _disagreement(data, f"{what} {size}", f"{rows}, the rows of token_embd.weight")
    return rows


def _num_layers(data: Metadata, file: GgufFile) -> int:
    """Layers that there can be tensors of: nothing is made of a number that is too large."""
    layers = data.integer("block_count")
    if layers > len(file.tensors):
        raise _disagreement(data, f"block_count {layers}", f"at most {len(file.tensors)}, the tensors")
    return layers


def _later_layers(data: Metadata, layers: int) -> int:
    """How many of the layers predict tokens after the next."""
    later = data.integer("nextn_predict_layers", 0, least=0)
    if later >= layers:
        raise data.bad("nextn_predict_layers", later, f"fewer than block_count, {layers}")
    return later


def _disagreement(data: Metadata, got: str, expected: str) -> CheckpointError:
    return CheckpointError(f"metadata and tensors of '{data.path}' disagree", got=got, expected=expected)


def _rope_parameters(data: Metadata, file: GgufFile, turned: int) -> dict[str, Any]:
    """What turns `turned` features of a head."""
    parameters: dict[str, Any] = {"rope_theta": data.number("rope.freq_base", _DEFAULT_ROPE_BASE)}
    scaling = data.text("rope.scaling.type", "none")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if scaling != "none":
            raise data.bad("rope.scaling.type", scaling, f"none, beside {ROPE_FACTORS}")
        # Hugging Face's "longrope" divides frequencies by a list; here it is the same list at any length
        listed = _factors(data, ROPE_FACTORS, factors, turned)
        return parameters | {
            "rope_type": "longrope",
            "short_factor": listed,
            "long_factor": listed,
            "attention_factor": 1.0,
            "original_max_position_embeddings": data.integer("context_length"),
        }
    if scaling in ("none", "longrope") and _LONG_FACTORS in file.tensors:
        if _SHORT_FACTORS not in file.tensors:
            raise _disagreement(data, f"{_LONG_FACTORS} alone", f"{_SHORT_FACTORS} beside it")
        long, short = (
            _factors(data, name, file.tensors[name], turned) for name in (_LONG_FACTORS, _SHORT_FACTORS)
        )
        return parameters | {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": data.number(_ATTENTION_FACTOR, 1.0),
        }
    if scaling == "none":
        if data.number(_SCALING_FACTOR, 1.0) != 1:
            raise data.bad(_SCALING_FACTOR, data.number(_SCALING_FACTOR), "1, beside no scaling")
        data.ignore(_ORIGINAL)
        return parameters | {"rope_type": "default"}
    if scaling == "linear":
        return parameters | {"rope_type": "linear", "factor": data.number(_SCALING_FACTOR)}
    if scaling == "yarn":
        factor = data.number(_SCALING_FACTOR)
        told, usual = data.number(_YARN_FACTOR, 1.0), 0.1 * math.log(factor) + 1
        if told != 1 and abs(told - usual) > 1e-6:
            raise data.bad(_YARN_FACTOR, told, f"{usual:.7g}, which follows from the factor")
        return parameters | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": data.integer(_ORIGINAL),
            "beta_fast": data.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": data.number("rope.scaling.yarn_beta_slow", 1.0),
        }
    raise data.bad("rope.scaling.type", scaling, "none, linear or yarn")


def _factors(data: Metadata, name: str, record: TensorRecord, turned: int) -> list[float]:
    if record.storage != "float32" or record.shape != (turned // 2,):
        raise CheckpointError(
            f"unsupported {name} in '{data.path}'",
            got=f"{record.storage} of shape {list(record.shape)}",
            expected=f"float32 of shape [{turned // 2}]",
        )
    return np.fromfile(record.file, "<f4", turned // 2, offset=record.offset).tolist()
