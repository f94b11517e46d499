"""Qwen 2, with biases on queries, keys and values, and Qwen 3, with norms on queries and keys."""

from typing import Any

from firp.export.families.recipe import NAMES, Family, attention, model
from firp.runtime.bundle.model_config import ModelConfig, RopeConfig
from firp.runtime.errors import CheckpointError

_QWEN2, _QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"


def _window(config: Any) -> int | None:
    """The sliding window that all layers share; a mix of windowed and full layers is refused."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise CheckpointError(
            "layers with different attention windows", got=sorted(kinds), expected="one kind for all layers"
        )
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"} and config.sliding_window is None:
        raise CheckpointError(
            "layers with a sliding window of no size",
            got="sliding_window null",
            expected="a number of tokens",
            fix="set sliding_window and use_sliding_window, or layer_types, in config.json",
        )
    return config.sliding_window


def _describe_qwen2(c: Any, rope: RopeConfig) -> ModelConfig:
    return model(c, _QWEN2, attention(c, qkv_bias=True), rope, window=_window(c))


def _describe_qwen3(c: Any, rope: RopeConfig) -> ModelConfig:
    heads = attention(c, qkv_bias=c.attention_bias, output_bias=c.attention_bias, qk_norm=True)
    return model(c, _QWEN3, heads, rope, window=_window(c))


QWEN2 = Family((_QWEN2,), _describe_qwen2, NAMES)
QWEN3 = Family((_QWEN3,), _describe_qwen3, NAMES)
