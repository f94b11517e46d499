"""Llama, and the many models that are published as one."""

from typing import Any

from firp.export.families.recipe import NAMES, Family, attention, model
from firp.runtime.bundle.model_config import ModelConfig, RopeConfig

_ARCHITECTURE = "LlamaForCausalLM"


def _describe(c: Any, rope: RopeConfig) -> ModelConfig:
    heads = attention(c, qkv_bias=c.attention_bias, output_bias=c.attention_bias)
    return model(c, _ARCHITECTURE, heads, rope, mlp_bias=c.mlp_bias)


LLAMA = Family((_ARCHITECTURE,), _describe, NAMES)
