"""The configuration of the text model in config.json: all of it, or a part of a model that takes images or
sounds too.

In: what config.json says, and whether the weights hold a head. Out: `TextPart`, or a CheckpointError.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from firp.export.families.refused import refusal
from firp.export.families.table import FAMILIES
from firp.export.families.wrappers import LOADED_AS, WRAPPERS
from firp.export.sources.checkpoint import transformers_config
from firp.runtime.errors import CheckpointError

_TIED = "tie_word_embeddings"


class TextPart(NamedTuple):
    """What the text model alone would have in its config.json."""

    raw: dict[str, Any]
    ignored: tuple[str, ...] = ()  # expressions for tensors of the rest


def text_part(raw: dict[str, Any], where: str, has_head: Callable[[], bool]) -> TextPart:
    """The text model of a configuration. where: its file, for errors. has_head: whether the weights hold a
    head, which is asked where the configuration leaves open if it is tied. Raises CheckpointError.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type in FAMILIES:
        return TextPart(raw)
    if model_type in LOADED_AS:
        return TextPart(raw | {"model_type": LOADED_AS[model_type]})
    given = raw.get("text_config")
    if model_type not in WRAPPERS:
        return TextPart(raw)
    if not isinstance(given, dict):
        expected = f"that of a text model, as transformers' {model_type} has it"
        raise CheckpointError(f"bad text_config in '{where}'", got=f"{given!r:.60}", expected=expected)
    _check_architecture(raw)
    try:
        inner = transformers_config(raw).text_config.to_dict()
    except Exception as error:  # whatever validation transformers does
        reason = " ".join(str(error).split())
        raise CheckpointError("bad model configuration", got=f"'{where}': {reason:.200}") from error
    if inner["model_type"] not in FAMILIES:
        raise refusal(inner["model_type"], f"text_config of {model_type}")
    said = {part[_TIED] for part in (raw, given) if part.get(_TIED) is not None}
    tied = said.pop() if len(said) == 1 else not has_head()
    ends = raw.get("eos_token_id") or given.get("eos_token_id")
    modules = "|".join(WRAPPERS[model_type])
    return TextPart(inner | {_TIED: tied, "eos_token_id": ends}, (rf"^(model\.)?({modules})(\.|$)",))


def _check_architecture(raw: dict[str, Any]) -> None:
    """A model that generates text; one with another head, for classes, is none."""
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named or None
    model_type = raw["model_type"]
    expected = f"{model_type}ForConditionalGeneration".replace("_", "").lower()
    if architecture is not None and str(architecture).replace("_", "").lower() != expected:
        raise CheckpointError(
            "architecture and model_type disagree", got=f"{architecture!r:.60}, model_type {model_type!r:.60}"
        )
