"""Mistral: Llama without biases, its rows may see a window of tokens only."""

from typing import Any

from firp.export.families.recipe import NAMES, Family, attention, model
from firp.runtime.bundle.model_config import ModelConfig, RopeConfig

_ARCHITECTURE = "MistralForCausalLM"


def _describe(c: Any, rope: RopeConfig) -> ModelConfig:
    return model(c, _ARCHITECTURE, attention(c), rope, window=c.sliding_window)


MISTRAL = Family((_ARCHITECTURE,), _describe, NAMES)
