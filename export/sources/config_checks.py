"""Checks that graphs can be made of a configuration.

In: transformers' configuration of a model. Out: nothing, or a CheckpointError that names the field.
"""

from typing import Any

from firp.export.families.recipe import head_dim
from firp.runtime.errors import CheckpointError

LEAST_CONTEXT = 16  # tokens: a prompt, a tree of drafts and some steps; shorter ones are mistakes
MOST_CONTEXT = 1 << 24  # tokens: rope tables have a row for each, and no model reads that many
LEAST_WINDOW = 2  # tokens: Hugging Face's own cache is wrong for a window of 1
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


def check_config(config: Any, where: str) -> None:
    """Check a configuration. where: its file, for errors. Raises CheckpointError for a field that the
    graphs cannot follow.
    """
    for name in _SIZES:
        _check_size(where, name, getattr(config, name))
    heads = head_dim(config)
    _check_size(where, "head_dim", heads)
    if not 0 < config.rms_norm_eps < 1:
        raise _bad(where, "rms_norm_eps", config.rms_norm_eps, "between 0 and 1")
    if config.num_hidden_layers < 2:
        raise CheckpointError("too few layers to split", got=config.num_hidden_layers, expected="at least 2")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            "heads do not divide",
            got=f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value heads",
        )
    if heads % 2:
        raise _bad(where, "head_dim", heads, "an even number, for rotary embedding turns pairs")
    context = config.max_position_embeddings
    if not LEAST_CONTEXT <= context <= MOST_CONTEXT:
        limit = f"at least {LEAST_CONTEXT}" if context < LEAST_CONTEXT else f"at most {MOST_CONTEXT}"
        raise _bad(where, "max_position_embeddings", context, limit)


def check_window(window: Any, where: str) -> None:
    """Check a sliding window. where: its file, for errors. Raises CheckpointError for one that no layer
    can have.
    """
    if window is not None and not (isinstance(window, int) and window >= LEAST_WINDOW):
        raise _bad(where, "sliding_window", window, f"at least {LEAST_WINDOW}, or null")


def _check_size(where: str, name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise _bad(where, name, value, "a positive integer")


def _bad(where: str, name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"bad {name} in '{where}'", got=value, expected=expected)
