"""Recipes of families: what one says, and the parts that several share.

In: transformers' configuration of a model, as its recipe reads it. Out: a `ModelConfig` whose biases
are still to be found, and where a checkpoint of that family keeps our weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from firp.export.families.names import LLAMA, Names
from firp.export.families.ropes import context, rope_tables
from firp.runtime.bundle.model_config import (
    XIELU,
    AttentionConfig,
    BlockConfig,
    ClampedConfig,
    EmbeddingConfig,
    ExpertsConfig,
    HeadConfig,
    LatentConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    PositionsConfig,
    QkNormConfig,
    QueryGrowth,
    RopeTable,
)
from firp.runtime.errors import CheckpointError

PRE_NORM = ("input_norm", "mlp_norm")
POST_NORM = ("attention_out_norm", "mlp_out_norm")
_ACTIVATIONS = {  # transformers' names
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
    "xielu": XIELU,
}  # fmt: skip
SEES = {  # kinds of layers: whether they have a window
    "full_attention": False,
    "attention": False,
    "global": False,
    "sliding_attention": True,
    "local": True,
}


class Family(NamedTuple):
    """A row of the table: how a configuration is read, and where the weights are."""

    describe: Callable[[Any], ModelConfig]
    names: Names | Callable[[Any], Names] = LLAMA  # or those of a configuration

    def names_of(self, c: Any) -> Names:
        """The name map of a model."""
        return self.names if isinstance(self.names, Names) else self.names(c)


def model(
    c: Any,
    *,
    heads: int | None = None,
    key_value_heads: int | None = None,
    scale: float | None = None,
    growth: QueryGrowth | None = None,
    qk_norm: str = "",
    qk_norm_kind: str = "rms",
    qk_norm_after_rope: bool = False,
    clip: float | None = None,
    attention_softcap: float | None = None,
    sinks: bool = False,
    latent: LatentConfig | None = None,
    attention_gate: bool = False,
    inner: int | None = None,
    gated: bool = True,
    activation: str | None = None,
    clamped: ClampedConfig | None = None,
    ropes: dict[str, RopeTable] | None = None,
    rope_of: Sequence[str | None] | None = None,
    interleaved: bool = False,
    learned: bool = False,
    alibi: tuple[float, ...] | None = None,
    alibi_rounded: bool = False,
    windows: Sequence[int | None] | None = None,
    experts: ExpertsConfig | None = None,
    sparse: Sequence[bool] | None = None,
    norm: str = "rms",
    epsilon: float | None = None,
    norms: tuple[str, ...] = PRE_NORM,
    parallel: bool = False,
    residual_scale: float = 1.0,
    embedding_scale: float = 1.0,
    embedding_norm: str | None = None,
    logits_scale: float = 1.0,
    logits_softcap: float | None = None,
) -> ModelConfig:
    """A model, where nothing is said one that names its sizes and layers as transformers' Llama does.
    ropes: {} for a model that turns nothing; rope_of, windows: of each layer.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    heads = heads or c.num_attention_heads
    size = latent.rank + latent.rope_size if latent else head_dim(c)
    layers = c.num_hidden_layers
    ropes = rope_tables(c) if ropes is None else ropes
    if rope_of is None:
        kinds = getattr(c, "layer_types", None)
        only = next(iter(ropes), None)
        rope_of = [only if len(ropes) < 2 else kinds[index] for index in range(layers)]
    windows = layer_windows(c) if windows is None else windows
    sparse = [experts is not None] * layers if sparse is None else sparse
    used = {rope for rope in rope_of if rope}
    return ModelConfig(
        architecture=MODEL_FOR_CAUSAL_LM_MAPPING[type(c)].__name__,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        max_position_embeddings=context(c),
        tie_word_embeddings=bool(c.tie_word_embeddings),
        attention=AttentionConfig(
            heads,
            1 if latent else key_value_heads or getattr(c, "num_key_value_heads", None) or heads,
            size,
            scale=float(size**-0.5 if scale is None else scale),
            growth=growth,
            qk_norm=QkNormConfig(qk_norm, qk_norm_kind, qk_norm_after_rope) if qk_norm else None,
            clip=number(clip),
            softcap=number(attention_softcap),
            sinks=sinks,
            latent=latent,
            gated=attention_gate,
        ),
        mlp=MlpConfig(
            inner or c.intermediate_size,
            gated,
            activation_of(c) if activation is None else activation,
            clamped,
        ),
        experts=experts if any(sparse) else None,
        positions=PositionsConfig(
            {name: table for name, table in ropes.items() if name in used},
            interleaved,
            learned,
            alibi,
            alibi_rounded,
        ),
        norm=NormConfig(norm, epsilon_of(c) if epsilon is None else epsilon),
        block=BlockConfig(norms, parallel, float(residual_scale)),
        embedding=EmbeddingConfig(float(embedding_scale), embedding_norm),
        head=HeadConfig(float(logits_scale), number(logits_softcap)),
        layers=tuple(LayerConfig(*layer) for layer in zip(windows, rope_of, sparse, strict=True)),
        biases=(),
    )


def refuse(c: Any, **fields: Any) -> None:
    """Raises CheckpointError where a field of a configuration has a value, or fulfils a condition, that no
    graph follows.
    """
    for name, bad in fields.items():
        value = getattr(c, name, None if callable(bad) else ...)
        if bad(value) if callable(bad) else value == bad and type(value) is type(bad):
            raise CheckpointError(
                f"unsupported {name}",
                got="null" if value is None else value,
                fix="firp families says what is supported",
            )


def number(value: float | None) -> float | None:
    """A number, None for one that says nothing."""
    return float(value) if value else None


def head_dim(c: Any) -> int:
    """Features of one head: as configured, or the hidden size shared out among the heads."""
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def epsilon_of(c: Any) -> float:
    """What keeps a norm from dividing by zero, by whatever name."""
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
    return next(getattr(c, name) for name in names if getattr(c, name, None) is not None)


def activation_of(c: Any) -> str:
    """The activation, by our name. Raises CheckpointError for one that graphs have no nodes for."""
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    found = next(getattr(c, name) for name in names if getattr(c, name, None) is not None)
    if found not in _ACTIVATIONS:
        raise CheckpointError(
            "unsupported activation", got=f"{found!r:.60}", expected="one of " + ", ".join(_ACTIVATIONS)
        )
    return _ACTIVATIONS[found]


def layer_windows(c: Any) -> list[int | None]:
    """The sliding window of each layer. Raises CheckpointError for layers with a window of no size."""
    window = getattr(c, "sliding_window", None)
    kinds = getattr(c, "layer_types", None)
    if not kinds:
        return [window] * c.num_hidden_layers
    if window is None and any(SEES[kind] for kind in kinds):
        raise CheckpointError(
            "layers with a sliding window of no size",
            got="sliding_window null",
            expected="a number of tokens",
            fix="set sliding_window and use_sliding_window, or layer_types, in config.json",
        )
    return [window if SEES[kind] else None for kind in kinds]
