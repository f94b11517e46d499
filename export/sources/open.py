"""The place where a path becomes a `Checkpoint`: a Hugging Face model directory, or a GGUF file; and the
same model for texts of another length.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from firp.export.sources.architecture import architecture
from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.gguf.model import read_gguf
from firp.export.sources.huggingface import read_model_directory
from firp.runtime.errors import CheckpointError

_SAME = (("short_factor", "long_factor"), ("short_mscale", "long_mscale"))


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a model, whatever holds it. Raises CheckpointError, one message for each way it
    can be wrong.
    """
    path = Path(path)
    if path.is_dir():
        return read_model_directory(path)
    if path.is_file():
        return read_gguf(path)
    raise CheckpointError(
        "no such model", got=f"'{path}'", expected="a Hugging Face model directory, or a GGUF file"
    )


def for_context(checkpoint: Checkpoint, tokens: int) -> Checkpoint:
    """The model for texts of so many tokens. Raises CheckpointError for a length that it has no positions
    for.
    """
    if takes_long_factors(checkpoint, tokens):
        checkpoint = _with_long_factors(checkpoint)
    return checkpoint.with_context(tokens)


def takes_long_factors(checkpoint: Checkpoint, tokens: int) -> bool:
    """Whether texts of so many tokens need the other factors of a "longrope" model. Its tables hold those
    for texts of every length then; Hugging Face turns shorter texts by the short ones.
    """
    return tokens > checkpoint.config.max_position_embeddings and _rope(checkpoint.raw_config) is not None


def _rope(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The rope parameters of a configuration that has factors of long texts."""
    found = [raw.get(name) for name in ("rope_parameters", "rope_scaling")]
    return next((rope for rope in found if isinstance(rope, dict) and "long_factor" in rope), None)


def _with_long_factors(checkpoint: Checkpoint) -> Checkpoint:
    """The same model that takes its long factors for every text."""
    raw = copy.deepcopy(checkpoint.raw_config)
    rope = _rope(raw)
    rope |= {short: rope[long] for short, long in _SAME if long in rope}
    config = architecture(raw, str(checkpoint.path)).config
    config = dataclasses.replace(config, biases=checkpoint.config.biases)
    return dataclasses.replace(checkpoint, config=config, raw_config=raw)
