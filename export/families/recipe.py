"""Recipes of families: what one says, and the parts that several share.

In: transformers' configuration of a model, as its recipe reads it. Out: a `ModelConfig`, and where
a checkpoint of that family keeps our weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from firp.runtime.bundle.model_config import (
    AttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)


class TensorNames(NamedTuple):
    """Places of our modules in a checkpoint; one of several names is joined along the first
    axis.
    """

    layer: str  # what stands before the names of a layer's modules
    modules: dict[str, tuple[str, ...]]  # ours, without the layer -> theirs

    def sources(self, weight: str) -> tuple[str, ...]:
        """Names in the checkpoint of one of our weights."""
        module, _, kind = weight.rpartition(".")
        before = ""
        if module.startswith("layers."):
            _, index, module = module.split(".")
            before = self.layer.format(i=index)
        return tuple(f"{before}{name}.{kind}" for name in self.modules[module])


class Family(NamedTuple):
    """A row of the table."""

    architectures: tuple[str, ...]  # that config.json may name; the first is the family's own
    describe: Callable[[Any, RopeConfig], ModelConfig]
    names: TensorNames


# Llama's, which most families share
NAMES = TensorNames(
    layer="model.layers.{i}.",
    modules={
        "embed_tokens": ("model.embed_tokens",),
        "norm": ("model.norm",),
        "lm_head": ("lm_head",),
        "input_norm": ("input_layernorm",),
        "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "q_norm": ("self_attn.q_norm",),
        "k_norm": ("self_attn.k_norm",),
        "o_proj": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        "down_proj": ("mlp.down_proj",),
    },
)


def attention(
    c: Any, qkv_bias: bool = False, output_bias: bool = False, qk_norm: bool = False
) -> AttentionConfig:
    """The attention of a model that names its sizes as transformers' Llama does."""
    return AttentionConfig(
        num_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=head_dim(c),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
    )


def head_dim(c: Any) -> int:
    """Features of one head: as configured, or the hidden size shared out among the heads."""
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def model(
    c: Any,
    architecture: str,
    attention: AttentionConfig,
    rope: RopeConfig,
    mlp_bias: bool = False,
    window: int | None = None,
) -> ModelConfig:
    """A model whose layers are all alike."""
    return ModelConfig(
        architecture=architecture,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        # "dynamic" rope equals "default" up to this length, and changes with the length beyond it
        max_position_embeddings=c.max_position_embeddings,
        tie_word_embeddings=c.tie_word_embeddings,
        attention=attention,
        mlp=MlpConfig(c.intermediate_size, mlp_bias),
        rope=rope,
        norm=NormConfig(c.rms_norm_eps),
        layers=(LayerConfig(window),) * c.num_hidden_layers,
    )
