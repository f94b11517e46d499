"""A Hugging Face model directory as a blueprint and a table of tensors; the only place that knows Hugging Face's names.

In: config.json and safetensors, one file or shards with an index. Out: `Checkpoint`: ModelConfig, where every tensor lies, and
which weights the graphs are made of. No tensor is read here, except to identify the checkpoint.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.bundle import ModelConfig
from firp.runtime.errors import CheckpointError
from firp.runtime.tree import MAX_PASS_ROWS

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorRecord(NamedTuple):
    """Where one tensor lies. `offset` counts bytes from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Weight(NamedTuple):
    """One tensor of the bundle: checkpoint tensors joined along their first axis, so that one GEMM serves them."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]


def _window(config: Any) -> int | None:
    """The sliding window that all layers share; a mix of windowed and full layers is refused."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise CheckpointError("layers with different attention windows", got=sorted(kinds), expected="one kind for all layers")
    return None if kinds == {"full_attention"} else config.sliding_window


# What sets a family apart from Llama without biases: the fields of ModelConfig that differ, from its Hugging Face config.
FAMILIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "LlamaForCausalLM": lambda c: {"qkv_bias": c.attention_bias, "o_bias": c.attention_bias, "mlp_bias": c.mlp_bias},
    "MistralForCausalLM": lambda c: {"sliding_window": c.sliding_window},
    "Qwen2ForCausalLM": lambda c: {"qkv_bias": True, "sliding_window": _window(c)},
    "Qwen3ForCausalLM": lambda c: {
        "qkv_bias": c.attention_bias, "o_bias": c.attention_bias, "qk_norm": True, "sliding_window": _window(c),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    config: ModelConfig
    dtype: str  # of the embedding
    tensors: dict[str, TensorRecord]
    eos_token_ids: tuple[int, ...]
    hf_config: Any

    def weights(self) -> list[Weight]:
        """The bundle's weights in file order, from the checkpoint's tensors."""
        c, out = self.config, []
        query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        out.append(Weight("embed_tokens.weight", (c.vocab_size, c.hidden_size), ("model.embed_tokens.weight",)))
        for i in range(c.num_hidden_layers):
            at, src = f"layers.{i}", f"model.layers.{i}"
            attention, mlp = f"{src}.self_attn", f"{src}.mlp"
            qkv, gate_up = [f"{attention}.{x}_proj" for x in "qkv"], [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
            out.append(Weight(f"{at}.input_norm.weight", (c.hidden_size,), (f"{src}.input_layernorm.weight",)))
            out += _linear(f"{at}.qkv_proj", query + 2 * kv, c.hidden_size, qkv, c.qkv_bias)
            if c.qk_norm:
                out += [Weight(f"{at}.{x}_norm.weight", (c.head_dim,), (f"{attention}.{x}_norm.weight",)) for x in "qk"]
            out += _linear(f"{at}.o_proj", c.hidden_size, query, [f"{attention}.o_proj"], c.o_bias)
            out.append(Weight(f"{at}.mlp_norm.weight", (c.hidden_size,), (f"{src}.post_attention_layernorm.weight",)))
            out += _linear(f"{at}.gate_up_proj", 2 * c.intermediate_size, c.hidden_size, gate_up, c.mlp_bias)
            out += _linear(f"{at}.down_proj", c.hidden_size, c.intermediate_size, [f"{mlp}.down_proj"], c.mlp_bias)
        out.append(Weight("norm.weight", (c.hidden_size,), ("model.norm.weight",)))
        if not c.tie_word_embeddings:
            out.append(Weight("lm_head.weight", (c.vocab_size, c.hidden_size), ("lm_head.weight",)))
        return out

    @property
    def rope_rows(self) -> int:
        """Positions in the rope tables. ONNX Runtime refuses a pass of more rows than that, whatever their positions."""
        return max(self.config.max_position_embeddings, MAX_PASS_ROWS)

    def rope_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin [positions, head_dim / 2] f32, scaling included, as Hugging Face's own module has them."""
        import torch
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rope = LlamaRotaryEmbedding(self.hf_config)
        positions = torch.arange(self.rope_rows, dtype=torch.float32)
        angles = positions[:, None] * rope.inv_freq.float()[None]
        return (angles.cos() * rope.attention_scaling).numpy(), (angles.sin() * rope.attention_scaling).numpy()

    def fingerprint(self) -> str:
        """Identifies the weights: sha256 over every tensor's name, dtype, shape and first 4 KiB (a quick look, not a proof)."""
        digest = hashlib.sha256()
        for name, record in sorted(self.tensors.items()):
            digest.update(f"{name} {record.dtype} {record.shape}".encode())
            with record.file.open("rb") as file:
                file.seek(record.offset)
                digest.update(file.read(min(4096, record.nbytes)))
        return digest.hexdigest()


def _linear(name: str, out_features: int, in_features: int, sources: list[str], bias: bool) -> list[Weight]:
    weights = [Weight(f"{name}.weight", (out_features, in_features), tuple(f"{source}.weight" for source in sources))]
    if bias:
        weights.append(Weight(f"{name}.bias", (out_features,), tuple(f"{source}.bias" for source in sources)))
    return weights


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a model directory: its architecture is supported, every tensor is there, has its shape and is used.

    Raises CheckpointError, one message for each way it can be wrong.
    """
    path = Path(path)
    raw = _read_config(path)
    config, hf_config = _model_config(path, raw)
    tensors = _read_index(path)
    checkpoint = Checkpoint(
        path, config, tensors.get("model.embed_tokens.weight", next(iter(tensors.values()))).dtype, tensors,
        _eos_token_ids(path, raw), hf_config,
    )  # fmt: skip
    _check_tensors(checkpoint)
    return checkpoint


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError("no such model directory", got=f"'{path}'", expected="a Hugging Face model directory")
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError("not a model", got=f"'{path}' without config.json", expected="a Hugging Face model directory")
    raw = _read_json(file)
    if not isinstance(raw, dict):
        raise CheckpointError("not a model configuration", got=f"'{file}'", expected="a JSON object")
    architecture = (raw.get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        raise CheckpointError("unsupported architecture", got=architecture, expected="one of " + ", ".join(FAMILIES))
    if raw.get("quantization_config"):
        raise CheckpointError(
            "quantized checkpoint", got=raw["quantization_config"].get("quant_method", "quantization_config"),
            expected="float32, float16 or bfloat16 weights", fix="export the original checkpoint",
        )  # fmt: skip
    return raw


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read JSON", got=f"'{file}': {error}") from error


def _model_config(path: Path, raw: dict[str, Any]) -> tuple[ModelConfig, Any]:
    from transformers import AutoConfig

    try:
        c = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever validation transformers does
        raise CheckpointError("bad model configuration", got=f"'{path / 'config.json'}': {error}") from error
    architecture = raw["architectures"][0]
    if c.hidden_act not in ("silu", "swish"):
        raise CheckpointError("unsupported activation", got=c.hidden_act, expected="silu")
    rope = c.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("partial rotary embedding", got=rope["partial_rotary_factor"], expected=1.0)
    supported = ("default", "linear", "dynamic", "yarn", "llama3")
    if rope["rope_type"] not in supported:
        raise CheckpointError("unsupported rope scaling", got=rope["rope_type"], expected="one of " + ", ".join(supported))
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
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    for name in (*sizes, "max_position_embeddings"):
        if not isinstance(getattr(config, name), int) or getattr(config, name) < 1:
            raise CheckpointError(f"bad {name} in config.json", got=getattr(config, name), expected="a positive integer")
    if config.num_hidden_layers < 2:
        raise CheckpointError("too few layers to split", got=config.num_hidden_layers, expected="at least 2")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            "heads do not divide", got=f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value heads"
        )
    return config, c


def _eos_token_ids(path: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """From generation_config.json, which overrides config.json, as Hugging Face generate does."""
    file = path / "generation_config.json"
    value = _read_json(file).get("eos_token_id") if file.is_file() else raw.get("eos_token_id")
    return tuple(value) if isinstance(value, list) else () if value is None else (value,)


def _read_index(path: Path) -> dict[str, TensorRecord]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in path.glob(pattern))
            raise CheckpointError(
                "no weights", got=f"'{path}' with {', '.join(other) or 'no weight file'}", expected="model.safetensors",
                fix="save the model with save_pretrained (transformers 5 writes safetensors)",
            )  # fmt: skip
        return read_safetensors(single)
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("bad weight index", got=f"'{index}' without weight_map")
    tensors: dict[str, TensorRecord] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError("missing shard", got=f"no '{path / shard}'", fix="download the checkpoint again")
        found = read_safetensors(path / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        if found.keys() != listed:
            wrong = sorted(found.keys() ^ listed)
            raise CheckpointError("shard and index disagree", got=f"{wrong[:3]} in '{path / shard}'", fix="download both again")
        tensors |= found
    return tensors


def read_safetensors(file: Path) -> dict[str, TensorRecord]:
    """The tensor table of one safetensors file (format: 8-byte header length, JSON header, data), checked against its size."""
    size = file.stat().st_size
    fix = "download the file again"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError("truncated weight file", got=f"{size} bytes in '{file}'", expected=f"over {length + 8}", fix=fix)
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: (item["dtype"], tuple(item["shape"]), *map(int, item["data_offsets"])) for name, item in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError("not a safetensors file", got=f"'{file}': {error!r}", fix=fix) from error
    start = 8 + length
    end = start + max((item[3] for item in entries.values()), default=0)
    if size != end:
        raise CheckpointError("truncated weight file", got=f"{size} bytes in '{file}'", expected=end, fix=fix)
    tensors = {}
    for name, (dtype, shape, begin, stop) in entries.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise CheckpointError(f"unsupported dtype of {name}", got=dtype, expected=" or ".join(SAFETENSORS_DTYPES))
        expected = math.prod(shape) * (4 if dtype == "F32" else 2)
        if not 0 <= begin <= stop or stop - begin != expected:
            raise CheckpointError(f"bad size of {name}", got=f"{stop - begin} bytes in '{file}'", expected=expected, fix=fix)
        tensors[name] = TensorRecord(file, SAFETENSORS_DTYPES[dtype], shape, start + begin, stop - begin)
    return tensors


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor is used exactly as the graphs need it, or named in an error."""
    tensors, weights = checkpoint.tensors, checkpoint.weights()
    used = {source for weight in weights for source in weight.sources}
    if missing := sorted(used - set(tensors)):
        raise CheckpointError(
            f"{len(missing)} tensors missing in '{checkpoint.path}'", got=_some(missing), fix="complete the checkpoint"
        )
    unused = {name for name in set(tensors) - used if not name.endswith("rotary_emb.inv_freq")}
    if checkpoint.config.tie_word_embeddings and "lm_head.weight" in unused:
        if not _same_bytes(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise CheckpointError(
                "tie_word_embeddings is true but lm_head.weight differs from model.embed_tokens.weight",
                got=f"'{checkpoint.path}'", fix="set tie_word_embeddings to false in config.json, or remove lm_head.weight",
            )  # fmt: skip
        unused.remove("lm_head.weight")
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors in '{checkpoint.path}' that {checkpoint.config.architecture} does not use",
            got=_some(sorted(unused)),
        )
    for weight in weights:
        shapes = [tensors[source].shape for source in weight.sources]
        if any(s[1:] != weight.shape[1:] for s in shapes) or sum(s[0] for s in shapes) != weight.shape[0]:
            raise CheckpointError(f"wrong shape of {' + '.join(weight.sources)}", got=shapes, expected=list(weight.shape))


def _same_bytes(a: TensorRecord, b: TensorRecord) -> bool:
    if a[1:3] != b[1:3]:
        return False
    with a.file.open("rb") as left, b.file.open("rb") as right:
        left.seek(a.offset)
        right.seek(b.offset)
        for done in range(0, a.nbytes, 1 << 24):
            step = min(1 << 24, a.nbytes - done)
            if left.read(step) != right.read(step):
                return False
    return True


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
