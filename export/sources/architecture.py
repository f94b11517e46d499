"""A model's configuration, in transformers' words, as our `ModelConfig`; beside the families' recipes
the only place that knows transformers' configurations.

In: the dictionary that config.json holds, or would hold. Out: its family and its blueprint, or a
CheckpointError.
"""

import math
from typing import Any, NamedTuple

from firp.export.families.recipe import Family
from firp.export.families.table import FAMILIES
from firp.export.sources.checkpoint import transformers_config
from firp.export.sources.config_checks import check_config, check_window
from firp.runtime.bundle.model_config import ModelConfig, RopeConfig
from firp.runtime.errors import CheckpointError

_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


class Architecture(NamedTuple):
    """What a configuration says."""

    family: Family
    config: ModelConfig


def architecture(raw: dict[str, Any], where: str) -> Architecture:
    """Read and check a configuration. where: its file, for errors. Raises CheckpointError."""
    family = _family(raw)
    try:
        c = transformers_config(raw)
    except Exception as error:  # whatever validation transformers does
        reason = " ".join(str(error).split())
        raise CheckpointError("bad model configuration", got=f"'{where}': {reason:.200}") from error
    if c.hidden_act not in ("silu", "swish"):
        raise CheckpointError("unsupported activation", got=c.hidden_act, expected="silu")
    check_config(c, where)
    config = family.describe(c, _rope(c))
    check_window(config.sliding_window, where)
    return Architecture(family, config)


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
    # one list of factors, whatever the length
    fixed = rope["rope_type"] == "longrope" and rope.get("short_factor") == rope.get("long_factor")
    if rope["rope_type"] not in _ROPE_TYPES and not fixed:
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
