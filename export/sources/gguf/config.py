"""What a GGUF file says of its model, in Hugging Face's words.

In: metadata, and tensors by GGUF's names. Out: the dictionary that config.json would hold. A key that
changes what the model computes and is not understood is refused by name, for a model that is almost
right would pass every comparison with itself.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.sources.gguf.file import GgufFile
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.errors import CheckpointError

ROPE_FACTORS = "rope_freqs.weight"  # what each frequency of rotary embedding is divided by


class _HuggingFace(NamedTuple):
    """What Hugging Face calls an architecture of llama.cpp."""

    model_type: str
    architecture: str


_ARCHITECTURES = {
    "llama": _HuggingFace("llama", "LlamaForCausalLM"),
    "qwen2": _HuggingFace("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _HuggingFace("qwen3", "Qwen3ForCausalLM"),
}
_MISTRAL = _HuggingFace("mistral", "MistralForCausalLM")  # a "llama" with a sliding window
_WINDOW = "attention.sliding_window"
_DEFAULT_ROPE_BASE = 10000.0  # llama.cpp's, where a file says nothing
# Keys that are understood with this value alone, which changes nothing
_NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "tensor_data_layout": "Meta AI original pth",
}
_TELLS_NOTHING = {"rope.scaling.finetuned"}


class Metadata:
    """The keys of a file's architecture, which must all be asked for."""

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path = path
        self.architecture = values.get("general.architecture")
        if self.architecture not in _ARCHITECTURES:
            raise CheckpointError(
                "unsupported architecture",
                got=f"{self.architecture!r:.60} in '{path}'",
                expected="one of " + ", ".join(_ARCHITECTURES),
            )
        prefix = f"{self.architecture}."
        self._values = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        self._asked = set(_TELLS_NOTHING)

    def has(self, key: str) -> bool:
        """Tell whether the file says something of it."""
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """A number of things. Raises CheckpointError where it is missing, or is no such number."""
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            raise self.bad(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, in the fewest digits that give the file's float32: 0.00001 as its author wrote it.
        Raises CheckpointError where it is missing, or is no number.
        """
        value = self._get(key, default)
        if not isinstance(value, float):
            raise self.bad(key, value, "a number")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """A word. Raises CheckpointError for what is none."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, "a text")
        return value

    def check_all_asked(self) -> None:
        """Raises CheckpointError for a key that nobody asked for."""
        for key, value in self._values.items():
            if key not in self._asked and (key not in _NEUTRAL or value != _NEUTRAL[key]):
                raise self.bad(key, value, repr(_NEUTRAL[key]) if key in _NEUTRAL else "no such key")

    def bad(self, key: str, value: Any, expected: object) -> CheckpointError:
        """An error about one key."""
        where = f"unsupported {self.architecture}.{key} in '{self.path}'"
        return CheckpointError(
            where, got=f"{value!r:.60}" if value is not None else "nothing", expected=expected
        )

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        return self._values.get(key, default)


def transformers_dictionary(path: Path, file: GgufFile) -> dict[str, Any]:
    """What config.json would hold. Raises CheckpointError for metadata that is missing, not
    understood, or contradicts the tensors.
    """
    data = Metadata(path, file.metadata)
    theirs = (
        _MISTRAL if data.architecture == "llama" and data.has(_WINDOW) else _ARCHITECTURES[data.architecture]
    )
    hidden_size, heads = data.integer("embedding_length"), data.integer("attention.head_count")
    head_dim = data.integer("attention.key_length", max(1, hidden_size // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if data.integer(key, head_dim) != head_dim:
            raise data.bad(key, data.integer(key), f"{head_dim}, the features of a key")
    config = {
        "architectures": [theirs.architecture],
        "model_type": theirs.model_type,
        "hidden_act": "silu",
        "vocab_size": _vocab_size(data, file),
        "hidden_size": hidden_size,
        "intermediate_size": data.integer("feed_forward_length"),
        "num_hidden_layers": _num_layers(data, file),
        "num_attention_heads": heads,
        "num_key_value_heads": data.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": data.integer("context_length"),
        "rms_norm_eps": data.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(data, file, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    if theirs is _MISTRAL:
        config["sliding_window"] = data.integer(_WINDOW)
    data.check_all_asked()
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


def _disagreement(data: Metadata, got: str, expected: str) -> CheckpointError:
    return CheckpointError(f"metadata and tensors of '{data.path}' disagree", got=got, expected=expected)


def _rope_parameters(data: Metadata, file: GgufFile, head_dim: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_theta": data.number("rope.freq_base", _DEFAULT_ROPE_BASE)}
    scaling = data.text("rope.scaling.type", "none")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if scaling != "none":
            raise data.bad("rope.scaling.type", scaling, f"none, beside {ROPE_FACTORS}")
        # Hugging Face's "longrope" divides frequencies by a list; here it is the same list at any length
        listed = _factors(data, factors, head_dim)
        return parameters | {
            "rope_type": "longrope",
            "short_factor": listed,
            "long_factor": listed,
            "attention_factor": 1.0,
            "original_max_position_embeddings": data.integer("context_length"),
        }
    if scaling == "none":
        return parameters | {"rope_type": "default"}
    if scaling == "linear":
        return parameters | {"rope_type": "linear", "factor": data.number("rope.scaling.factor")}
    if scaling == "yarn":
        return parameters | {
            "rope_type": "yarn",
            "factor": data.number("rope.scaling.factor"),
            "original_max_position_embeddings": data.integer("rope.scaling.original_context_length"),
            "beta_fast": data.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": data.number("rope.scaling.yarn_beta_slow", 1.0),
        }
    raise data.bad("rope.scaling.type", scaling, "none, linear or yarn")


def _factors(data: Metadata, record: TensorRecord, head_dim: int) -> list[float]:
    if record.storage != "float32" or record.shape != (head_dim // 2,):
        raise CheckpointError(
            f"unsupported {ROPE_FACTORS} in '{data.path}'",
            got=f"{record.storage} of shape {list(record.shape)}",
            expected=f"float32 of shape [{head_dim // 2}]",
        )
    return np.fromfile(record.file, "<f4", head_dim // 2, offset=record.offset).tolist()
