"""A Hugging Face model directory as a `Checkpoint`.

In: config.json and safetensors, one file or shards with an index. Out: the blueprint, where every
tensor lies, and which weights the graphs are made of.
"""

import os
from pathlib import Path
from typing import Any

from firp.export.sources.architecture import architecture
from firp.export.sources.assemble import assemble
from firp.export.sources.checkpoint import COMPANIONS, Checkpoint
from firp.export.sources.packed_integers import PACKED, packed_tensors
from firp.export.sources.safetensors_file import read_checkpoint_tensors, read_json
from firp.export.sources.small_floats import check_method, scaled_tensors
from firp.export.sources.text_part import text_part
from firp.runtime.bundle.format import eos_token_ids
from firp.runtime.errors import BundleError, CheckpointError


def read_model_directory(path: Path) -> Checkpoint:
    """Read and check a model directory: its architecture is supported, every tensor is there, has
    its shape and is used.

    Raises CheckpointError, one message for each way it can be wrong.
    """
    where = str(path / "config.json")
    whole = _read_config(path)
    raw, beside = text_part(whole, where, lambda: _has_head(path))
    quantization = whole.get("quantization_config") or raw.get("quantization_config")
    raw = {name: value for name, value in raw.items() if name != "quantization_config"}
    if quantization:
        check_method(quantization)
    found = architecture(raw, where)
    tensors = read_checkpoint_tensors(path, quantized=bool(quantization))
    if quantization:
        join = packed_tensors if quantization["quant_method"] in PACKED else scaled_tensors
        tensors = join(tensors, quantization)
    if found.config.num_hidden_layers > len(tensors):
        raise CheckpointError(
            f"tensors missing in '{path}'",
            got=f"{len(tensors)} tensors",
            expected=f"{found.config.num_hidden_layers} layers",
        )
    eos = _eos_token_ids(path, raw, found.config.vocab_size)
    companions = {name: path / name for name in COMPANIONS if os.path.lexists(path / name)}
    found = found._replace(ignored=found.ignored + beside)
    return assemble(path, raw, found, tensors, eos, companions)


def _has_head(path: Path) -> bool:
    """Whether the weights hold a head beside the embedding."""
    return any(name.endswith("lm_head.weight") for name in read_checkpoint_tensors(path, quantized=True))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            "not a model", got=f"'{path}' without config.json", expected="a Hugging Face model directory"
        )
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise CheckpointError("not a model configuration", got=f"'{file}'", expected="a JSON object")
    return raw


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
