"""Rotary positions of a model: the frequencies of Hugging Face's own module of its family, so that
every kind of scaling is theirs.

In: transformers' configuration of a model. Out: tables of frequencies by name, or a CheckpointError.
"""

import math
import sys
from typing import Any

from firp.runtime.bundle.model_config import RopeTable
from firp.runtime.errors import CheckpointError

ALL_LAYERS = "default"  # the name of a table that is not one of a kind of layers
_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "ntk_alpha")


def rope_tables(c: Any) -> dict[str, RopeTable]:
    """The table of each kind of layers, by its name in layer_types, or one for all."""
    parameters = c.rope_parameters
    kinds = [kind for kind, value in parameters.items() if isinstance(value, dict)] if parameters else []
    for each in [parameters[kind] for kind in kinds] or [parameters]:
        _check(each)
    try:
        module = _module_class(c)(c)
        if not kinds:
            return {ALL_LAYERS: _table(module.inv_freq, module.attention_scaling, parameters)}
        return {
            kind: _table(
                getattr(module, f"{kind}_inv_freq"),
                getattr(module, f"{kind}_attention_scaling"),
                parameters[kind],
            )
            for kind in kinds
            if kind in c.layer_types
        }
    except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "bad rope parameters", got=f"{error!r:.120}", expected="those of a working model"
        ) from error


def context(c: Any) -> int:
    """Tokens that one set of frequencies is right for. "dynamic" rope equals "default" up to the
    context's length; "longrope" takes other factors for a text beyond the length that it was trained on,
    for all of it, which a cache cannot follow.
    """
    parameters = getattr(c, "rope_parameters", None) or {}
    names = ("max_position_embeddings", "max_seq_len", "seq_length")
    length = next((getattr(c, name) for name in names if getattr(c, name, None)), 2048)
    if parameters.get("rope_type") == "longrope" and parameters["short_factor"] != parameters["long_factor"]:
        original = parameters.get("original_max_position_embeddings")
        return min(length, original or getattr(c, "original_max_position_embeddings", None) or length)
    return length


def _check(rope: Any) -> None:
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise CheckpointError("unsupported rope parameters", got=f"{rope!r:.120}", expected="a rope_type")
    if rope["rope_type"] not in _TYPES:
        raise CheckpointError(
            "unsupported rope scaling", got=rope["rope_type"], expected="one of " + ", ".join(_TYPES)
        )


def _module_class(c: Any) -> Any:
    """The rotary embedding of the model's family."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    modeling = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(c)].__module__]
    return next(value for name, value in vars(modeling).items() if name.endswith("RotaryEmbedding"))


def _table(frequencies: Any, scale: float, parameters: dict[str, Any]) -> RopeTable:
    table = RopeTable(tuple(frequencies.float().tolist()), float(scale))
    if not all(0 < number < math.inf for number in (*table.frequencies, table.scale)):
        raise CheckpointError("bad rope parameters", got=parameters, expected="finite frequencies")
    return table
