"""A model's configuration, in transformers' words, as our `ModelConfig`; beside the families' recipes
the only place that knows transformers' configurations.

In: the dictionary that config.json holds, or would hold. Out: its family and its blueprint, or a
CheckpointError.
"""

from typing import Any, NamedTuple

from firp.export.families.names import Names
from firp.export.families.recipe import Family
from firp.export.families.refused import refusal
from firp.export.families.table import FAMILIES
from firp.export.sources.checkpoint import transformers_config
from firp.export.sources.config_checks import check_config, check_model
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.errors import CheckpointError, FirpError


class Architecture(NamedTuple):
    """What a configuration says."""

    names: Names
    config: ModelConfig  # without biases, which tensors say
    ignored: tuple[str, ...] = ()  # expressions for tensors that transformers does not read: of MTP layers


def architecture(raw: dict[str, Any], where: str) -> Architecture:
    """Read and check a configuration. where: its file, for errors. Raises CheckpointError."""
    family = _family(raw)
    try:
        c = transformers_config(raw)
    except Exception as error:  # whatever validation transformers does
        reason = " ".join(str(error).split())
        raise CheckpointError("bad model configuration", got=f"'{where}': {reason:.200}") from error
    check_config(c, where)
    try:
        config, names = family.describe(c), family.names_of(c)
        check_model(config, where)
        config.validate(where)
    except CheckpointError:
        raise
    except FirpError as error:
        raise error.with_fix(CheckpointError, "correct config.json") from error
    except (
        AttributeError,
        TypeError,
        ValueError,
        ArithmeticError,
        KeyError,
        IndexError,
        StopIteration,
    ) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise CheckpointError("bad model configuration", got=f"'{where}': {reason:.200}") from error
    return Architecture(names, config, _ignored(c))


def _ignored(c: Any) -> tuple[str, ...]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING[type(c)]._keys_to_ignore_on_load_unexpected or ())


def _family(raw: dict[str, Any]) -> Family:
    """The family, by model_type; what `architectures` names, if anything, must be what transformers
    loads it as, or the name of its own.
    """
    model_type = raw.get("model_type")
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named or None
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise refusal(model_type, architecture)
    if architecture is not None and not _names(architecture, model_type):
        raise CheckpointError(
            "architecture and model_type disagree", got=f"{architecture!r:.60}, model_type {model_type!r:.60}"
        )
    return family


def _names(architecture: Any, model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LOADED

    if architecture == LOADED[model_type]:
        return True
    own = str(architecture).lower()
    short = model_type.replace("_", "").removesuffix("text")
    return own in (f"{short}forcausallm", f"{short}lmheadmodel", f"{short}model")
