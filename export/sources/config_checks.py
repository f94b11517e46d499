"""Checks that graphs can be made of a configuration.

In: transformers' configuration of a model, and the blueprint made of it. Out: nothing, or a
CheckpointError that names the field.
"""

import math
from typing import Any

from firp.export.families.recipe import SEES
from firp.export.sources.checkpoint import LEAST_CONTEXT
from firp.runtime.bundle.model_config import MOST_LAYERS, ModelConfig
from firp.runtime.errors import CheckpointError

MOST_CONTEXT = 1 << 24  # tokens: rope tables have a row for each, and no model reads that many
LEAST_WINDOW = 2  # tokens: Hugging Face's own cache is wrong for a window of 1
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "max_position_embeddings",
)

_MORE_THAN_0 = ("logits_scaling", "query_pre_attn_scalar", "dim_model_base")
_OF_ROPE = ("mscale", "mscale_all_dim", "short_mscale", "long_mscale", "llama_4_scaling_beta")
_STEPS = ("decoder_sparse_step", "moe_layer_interval")
_OF_LAYERS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layer_rope_theta")


def check_config(config: Any, where: str) -> None:
    """Check the sizes of a configuration. where: its file, for errors. Raises CheckpointError for a
    field that is no size.
    """
    for name in _SIZES:
        value = getattr(config, name, 1)  # a family that lacks it has another
        if type(value) is not int or value < 1:
            if value is None and name in ("num_key_value_heads", "intermediate_size"):
                continue
            raise _bad(where, name, value, "a positive integer")
    if config.num_hidden_layers > MOST_LAYERS:
        raise _bad(where, "num_hidden_layers", config.num_hidden_layers, f"at most {MOST_LAYERS}")
    if config.num_hidden_layers < 2:
        raise CheckpointError("too few layers to split", got=config.num_hidden_layers, expected="at least 2")
    heads, pairs = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if pairs and heads % pairs:
        raise CheckpointError("heads do not divide", got=f"{heads} query, {pairs} key/value heads")
    _check_further(config, where)


def _check_further(config: Any, where: str) -> None:
    """Fields that not every family has."""
    for name in _MORE_THAN_0:
        value = getattr(config, name, 1)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise _bad(where, name, value, "a number above 0")
    for name in _STEPS:
        value = getattr(config, name, 1)
        if type(value) is not int or value < 1:
            raise _bad(where, name, value, "a positive integer")
    layers = config.num_hidden_layers
    for name in _OF_LAYERS:
        value = getattr(config, name, None) or [None] * layers
        if not isinstance(value, list | tuple) or len(value) != layers:
            raise _bad(where, name, f"{value!r:.80}", f"a list of {layers}, one for each layer")
    rope = getattr(config, "rope_parameters", None)
    for name in _OF_ROPE if isinstance(rope, dict) else ():
        if not isinstance(rope.get(name), int | float | None):
            raise _bad(where, f"{name} of rope_parameters", f"{rope[name]!r:.60}", "a number")
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - set(SEES)):
        raise CheckpointError("unsupported kind of layer", got=", ".join(unknown), expected=" or ".join(SEES))


def check_model(model: ModelConfig, where: str) -> None:
    """Check a blueprint. where: the configuration's file, for errors. Raises CheckpointError for what
    the graphs cannot follow.
    """
    size, context = model.attention.rope_size, model.max_position_embeddings
    if size < 1:
        raise _bad(where, "head_dim", size, "a positive integer")
    if not 0 < model.norm.epsilon < 1:
        raise _bad(where, "epsilon of norms", model.norm.epsilon, "between 0 and 1")
    if size % 2 and model.positions.ropes:
        raise _bad(where, "head_dim", size, "an even number, for rotary embedding turns pairs")
    if not LEAST_CONTEXT <= context <= MOST_CONTEXT:
        limit = f"at least {LEAST_CONTEXT}" if context < LEAST_CONTEXT else f"at most {MOST_CONTEXT}"
        raise _bad(where, "max_position_embeddings", context, limit)
    for layer in model.layers:
        window = layer.window
        if window is not None and not (type(window) is int and window >= LEAST_WINDOW):
            raise _bad(where, "sliding_window", window, f"at least {LEAST_WINDOW}, or null")


def _bad(where: str, name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"bad {name} in '{where}'", got=value, expected=expected)
