"""Contexts of other lengths than a model's own.

In: a `Checkpoint`, a number of tokens. Out: the same model with shorter tables of positions, or with the
rope factors of long texts for texts of every length.
"""

import copy
import dataclasses
from typing import Any

from firp.export.sources.architecture import architecture
from firp.export.sources.checkpoint import Checkpoint

_SAME = (("short_factor", "long_factor"), ("short_mscale", "long_mscale"))


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
