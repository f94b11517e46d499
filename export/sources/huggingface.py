"""A Hugging Face model directory as a blueprint and a table of tensors; the only place that knows
Hugging Face's names.

In: config.json and safetensors, one file or shards with an index. Out: `Checkpoint`: ModelConfig,
where every tensor lies, and which weights the graphs are made of. No tensor is read here, except to
identify the checkpoint.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.sources.safetensors_file import TensorRecord, read_checkpoint_tensors, read_json, same_bytes
from firp.runtime.bundle.format import eos_token_ids
from firp.runtime.bundle.graph_spec import ModelConfig
from firp.runtime.errors import BundleError, CheckpointError
from firp.runtime.trees.tree import MAX_PASS_ROWS


class Weight(NamedTuple):
    """One tensor of the bundle: checkpoint tensors joined along their first axis, so that one GEMM
    serves them.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]


def _window(config: Any) -> int | None:
    """The sliding window that all layers share; a mix of windowed and full layers is refused."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise CheckpointError(
            "layers with different attention windows", got=sorted(kinds), expected="one kind for all layers"
        )
    return None if kinds == {"full_attention"} else config.sliding_window


# What sets a family apart from Llama without biases: the fields of ModelConfig that differ, from
# its Hugging Face config.
FAMILIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "LlamaForCausalLM": lambda c: {
        "qkv_bias": c.attention_bias,
        "o_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
    },
    "MistralForCausalLM": lambda c: {"sliding_window": c.sliding_window},
    "Qwen2ForCausalLM": lambda c: {"qkv_bias": True, "sliding_window": _window(c)},
    "Qwen3ForCausalLM": lambda c: {
        "qkv_bias": c.attention_bias,
        "o_bias": c.attention_bias,
        "qk_norm": True,
        "sliding_window": _window(c),
    },
}


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    config: ModelConfig
    tensors: dict[str, TensorRecord]
    eos_token_ids: tuple[int, ...]
    hf_config: Any

    def prediction_layer(self, requested: int | None) -> int:
        """The layer to split at: the requested one, or three quarters of the way up. Raises
        CheckpointError.
        """
        layers = self.config.num_hidden_layers
        if requested is not None and not 1 <= requested < layers:
            raise CheckpointError(
                "prediction layer out of range", got=requested, expected=f"1 to {layers - 1}"
            )
        return max(1, layers * 3 // 4) if requested is None else requested

    def weights(self) -> list[Weight]:
        """The bundle's weights in file order, from the checkpoint's tensors."""
        c, out = self.config, []
        query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        out.append(
            Weight("embed_tokens.weight", (c.vocab_size, c.hidden_size), ("model.embed_tokens.weight",))
        )
        for i in range(c.num_hidden_layers):
            at, src = f"layers.{i}", f"model.layers.{i}"
            attention, mlp = f"{src}.self_attn", f"{src}.mlp"
            qkv, gate_up = [f"{attention}.{x}_proj" for x in "qkv"], [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
            out.append(
                Weight(f"{at}.input_norm.weight", (c.hidden_size,), (f"{src}.input_layernorm.weight",))
            )
            out += _linear(f"{at}.qkv_proj", query + 2 * kv, c.hidden_size, qkv, c.qkv_bias)
            if c.qk_norm:
                out += [
                    Weight(f"{at}.{x}_norm.weight", (c.head_dim,), (f"{attention}.{x}_norm.weight",))
                    for x in "qk"
                ]
            out += _linear(f"{at}.o_proj", c.hidden_size, query, [f"{attention}.o_proj"], c.o_bias)
            out.append(
                Weight(f"{at}.mlp_norm.weight", (c.hidden_size,), (f"{src}.post_attention_layernorm.weight",))
            )
            out += _linear(f"{at}.gate_up_proj", 2 * c.intermediate_size, c.hidden_size, gate_up, c.mlp_bias)
            out += _linear(
                f"{at}.down_proj", c.hidden_size, c.intermediate_size, [f"{mlp}.down_proj"], c.mlp_bias
            )
        out.append(Weight("norm.weight", (c.hidden_size,), ("model.norm.weight",)))
        if not c.tie_word_embeddings:
            out.append(Weight("lm_head.weight", (c.vocab_size, c.hidden_size), ("lm_head.weight",)))
        return out

    @property
    def rope_rows(self) -> int:
        """Positions in the rope tables. ONNX Runtime refuses a pass of more rows than that,
        whatever their positions.
        """
        return max(self.config.max_position_embeddings, MAX_PASS_ROWS)

    def rope_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin [positions, head_dim / 2] f32, scaling included, as Hugging Face's own module
        has them.
        """
        import torch
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        try:
            rope = LlamaRotaryEmbedding(self.hf_config)
            positions = torch.arange(self.rope_rows, dtype=torch.float32)
            angles = positions[:, None] * rope.inv_freq.float()[None]
            tables = (
                (angles.cos() * rope.attention_scaling).numpy(),
                (angles.sin() * rope.attention_scaling).numpy(),
            )
        except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                "bad rope parameters", got=f"{error!r:.120}", expected="those of a working model"
            ) from error
        if not all(np.isfinite(table).all() for table in tables) or not (rope.inv_freq > 0).all():
            raise CheckpointError(
                "bad rope parameters", got=self.hf_config.rope_parameters, expected="finite frequencies"
            )
        return tables

    def fingerprint(self) -> str:
        """Identifies the weights: sha256 over every tensor's name, dtype, shape and first 4 KiB (a
        quick look, not a proof).
        """
        digest = hashlib.sha256()
        for name, record in sorted(self.tensors.items()):
            digest.update(f"{name} {record.dtype} {record.shape}".encode())
            with record.file.open("rb") as file:
                file.seek(record.offset)
                digest.update(file.read(min(4096, record.nbytes)))
        return digest.hexdigest()


def _linear(name: str, out_features: int, in_features: int, sources: list[str], bias: bool) -> list[Weight]:
    weights = [
        Weight(f"{name}.weight", (out_features, in_features), tuple(f"{source}.weight" for source in sources))
    ]
    if bias:
        weights.append(Weight(f"{name}.bias", (out_features,), tuple(f"{source}.bias" for source in sources)))
    return weights


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a model directory: its architecture is supported, every tensor is there, has
    its shape and is used.

    Raises CheckpointError, one message for each way it can be wrong.
    """
    path = Path(path)
    raw = _read_config(path)
    config, hf_config = _model_config(path, raw)
    checkpoint = Checkpoint(
        path, config, read_checkpoint_tensors(path), _eos_token_ids(path, raw, config.vocab_size), hf_config
    )
    _check_tensors(checkpoint)
    return checkpoint


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(
            "no such model directory", got=f"'{path}'", expected="a Hugging Face model directory"
        )
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            "not a model", got=f"'{path}' without config.json", expected="a Hugging Face model directory"
        )
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise CheckpointError("not a model configuration", got=f"'{file}'", expected="a JSON object")
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise CheckpointError(
            "unsupported architecture", got=f"{architecture!r:.60}", expected="one of " + ", ".join(FAMILIES)
        )
    if raw.get("model_type") != architecture.removesuffix("ForCausalLM").lower():
        raise CheckpointError(
            "architecture and model_type disagree",
            got=f"{architecture}, model_type {raw.get('model_type')!r:.60}",
        )
    if quantization := raw.get("quantization_config"):
        raise CheckpointError(
            "quantized checkpoint",
            got=quantization.get("quant_method")
            if isinstance(quantization, dict)
            else f"{quantization!r:.60}",
            expected="float32, float16 or bfloat16 weights",
            fix="export the original checkpoint",
        )
    return raw


def _model_config(path: Path, raw: dict[str, Any]) -> tuple[ModelConfig, Any]:
    from transformers import AutoConfig

    try:
        c = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever validation transformers does
        reason = " ".join(str(error).split())
        raise CheckpointError(
            "bad model configuration", got=f"'{path / 'config.json'}': {reason:.200}"
        ) from error
    architecture = raw["architectures"][0]
    if c.hidden_act not in ("silu", "swish"):
        raise CheckpointError("unsupported activation", got=c.hidden_act, expected="silu")
    rope = c.rope_parameters
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise CheckpointError(
            "unsupported rope parameters", got=f"{rope!r:.120}", expected="one rope_type for all layers"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("partial rotary embedding", got=rope["partial_rotary_factor"], expected=1.0)
    supported = ("default", "linear", "dynamic", "yarn", "llama3")
    if rope["rope_type"] not in supported:
        raise CheckpointError(
            "unsupported rope scaling", got=rope["rope_type"], expected="one of " + ", ".join(supported)
        )
    config = ModelConfig(
        architecture=architecture,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        rms_norm_eps=c.rms_norm_eps,
        # "dynamic" rope equals "default" up to this length, and changes with the length beyond it
        max_position_embeddings=c.max_position_embeddings,
        tie_word_embeddings=c.tie_word_embeddings,
        rope_type=rope["rope_type"],
        **FAMILIES[architecture](c),
    )
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    for name in (*sizes, "max_position_embeddings"):
        if not isinstance(getattr(config, name), int) or getattr(config, name) < 1:
            raise CheckpointError(
                f"bad {name} in config.json", got=getattr(config, name), expected="a positive integer"
            )
    if not 0 < config.rms_norm_eps < 1:
        raise CheckpointError(
            "bad rms_norm_eps in config.json", got=config.rms_norm_eps, expected="between 0 and 1"
        )
    if config.num_hidden_layers < 2:
        raise CheckpointError("too few layers to split", got=config.num_hidden_layers, expected="at least 2")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            "heads do not divide",
            got=f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value heads",
        )
    return config, c


def _eos_token_ids(path: Path, raw: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """From generation_config.json, which overrides config.json, as Hugging Face generate does; else
    from config.json.
    """
    file = path / "generation_config.json"
    generation = read_json(file) if os.path.lexists(file) else {}
    try:
        return eos_token_ids(generation, vocab_size, str(file)) or eos_token_ids(
            raw, vocab_size, str(path / "config.json")
        )
    except BundleError as error:
        raise error.with_fix(CheckpointError, "correct the file") from error


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor is used exactly as the graphs need it, or named in an error."""
    tensors, layers = checkpoint.tensors, checkpoint.config.num_hidden_layers
    if layers > len(tensors):
        raise CheckpointError(
            f"tensors missing in '{checkpoint.path}'",
            got=f"{len(tensors)} tensors",
            expected=f"{layers} layers",
        )
    weights = checkpoint.weights()
    used = {source for weight in weights for source in weight.sources}
    if missing := sorted(used - set(tensors)):
        raise CheckpointError(
            f"{len(missing)} tensors missing in '{checkpoint.path}'",
            got=_some(missing),
            fix="complete the checkpoint",
        )
    unused = {name for name in set(tensors) - used if not name.endswith("rotary_emb.inv_freq")}
    if checkpoint.config.tie_word_embeddings and "lm_head.weight" in unused:
        if not same_bytes(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise CheckpointError(
                "tie_word_embeddings is true but lm_head.weight differs from model.embed_tokens.weight",
                got=f"'{checkpoint.path}'",
                fix="set tie_word_embeddings to false in config.json, or remove lm_head.weight",
            )
        unused.remove("lm_head.weight")
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors in '{checkpoint.path}' that {checkpoint.config.architecture} does not use",
            got=_some(sorted(unused)),
        )
    for weight in weights:
        shapes = [tensors[source].shape for source in weight.sources]
        fits = all(len(s) == len(weight.shape) and s[1:] == weight.shape[1:] for s in shapes)
        if not fits or sum(s[0] for s in shapes) != weight.shape[0]:
            raise CheckpointError(
                f"wrong shape of {' + '.join(weight.sources)}", got=shapes, expected=list(weight.shape)
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
