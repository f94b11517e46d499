"""A Hugging Face model directory as a `Checkpoint`; beside the families' recipes the only place
that knows Hugging Face.

In: config.json and safetensors, one file or shards with an index. Out: the blueprint, where every
tensor lies, and which weights the graphs are made of.
"""

import math
import os
from pathlib import Path
from typing import Any

from firp.export.families.recipe import Family
from firp.export.families.table import FAMILIES
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.sources.config_checks import check_config, check_window
from firp.export.sources.safetensors_file import read_checkpoint_tensors, read_json, same_bytes
from firp.runtime.bundle.format import eos_token_ids
from firp.runtime.bundle.model_config import ModelConfig, RopeConfig
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import BundleError, CheckpointError

_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a model directory: its architecture is supported, every tensor is there, has
    its shape and is used.

    Raises CheckpointError, one message for each way it can be wrong.
    """
    path = Path(path)
    raw = _read_config(path)
    family = _family(raw)
    config = _model_config(path, family)
    tensors = read_checkpoint_tensors(path)
    if config.num_hidden_layers > len(tensors):
        raise CheckpointError(
            f"tensors missing in '{path}'",
            got=f"{len(tensors)} tensors",
            expected=f"{config.num_hidden_layers} layers",
        )
    shapes = weight_shapes(config).items()
    weights = tuple(Weight(name, shape, family.names.sources(name)) for name, shape in shapes)
    eos = _eos_token_ids(path, raw, config.vocab_size)
    checkpoint = Checkpoint(path, config, weights, tensors, eos)
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


def _family(raw: dict[str, Any]) -> Family:
    """The family, by model_type; what `architectures` names, if anything, must be of that
    family.
    """
    named = raw.get("architectures")
    model_type = raw.get("model_type")
    architecture = named[0] if isinstance(named, list) and named else named or None
    known = [name for family in FAMILIES.values() for name in family.architectures]
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if architecture not in known and (architecture is not None or family is None):
        got = f"{architecture!r:.60}" if architecture is not None else f"model_type {model_type!r:.60}"
        raise CheckpointError("unsupported architecture", got=got, expected="one of " + ", ".join(known))
    if family is None or (architecture is not None and architecture not in family.architectures):
        raise CheckpointError(
            "architecture and model_type disagree", got=f"{architecture}, model_type {model_type!r:.60}"
        )
    return family


def _model_config(path: Path, family: Family) -> ModelConfig:
    from transformers import AutoConfig

    try:
        c = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever validation transformers does
        reason = " ".join(str(error).split())
        raise CheckpointError(
            "bad model configuration", got=f"'{path / 'config.json'}': {reason:.200}"
        ) from error
    if c.hidden_act not in ("silu", "swish"):
        raise CheckpointError("unsupported activation", got=c.hidden_act, expected="silu")
    check_config(c)
    config = family.describe(c, _rope(c))
    check_window(config.sliding_window)
    return config


def _rope(c: Any) -> RopeConfig:
    """The frequencies of Hugging Face's own module, so that every kind of scaling is theirs."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = c.rope_parameters
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise CheckpointError(
            "unsupported rope parameters", got=f"{rope!r:.120}", expected="one rope_type for all layers"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("partial rotary embedding", got=rope["partial_rotary_factor"], expected=1.0)
    if rope["rope_type"] not in _ROPE_TYPES:
        raise CheckpointError(
            "unsupported rope scaling", got=rope["rope_type"], expected="one of " + ", ".join(_ROPE_TYPES)
        )
    try:
        module = LlamaRotaryEmbedding(c)
        found = RopeConfig(tuple(module.inv_freq.float().tolist()), float(module.attention_scaling))
    except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "bad rope parameters", got=f"{error!r:.120}", expected="those of a working model"
        ) from error
    if not all(0 < number < math.inf for number in (*found.frequencies, found.scale)):
        raise CheckpointError("bad rope parameters", got=rope, expected="finite frequencies")
    return found


def _eos_token_ids(path: Path, raw: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Tokens that end a text: from generation_config.json, which overrides config.json, as Hugging
    Face generate does; else from config.json.
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
    tensors = checkpoint.tensors
    weights = checkpoint.weights
    used = {source for weight in weights for source in weight.sources}
    if missing := sorted(used - set(tensors)):
        raise CheckpointError(
            f"{len(missing)} tensors missing in '{checkpoint.path}'",
            got=_some(missing),
            fix="complete the checkpoint",
        )
    architecture = checkpoint.config.architecture
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
            f"{len(unused)} tensors in '{checkpoint.path}' that {architecture} does not use",
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
