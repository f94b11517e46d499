"""What a bundle's graphs are: the model's blueprint, and each graph's inputs and outputs.

In: a ModelConfig, the prediction layer, the number of predictors, the dtype. Out: one GraphSpec a
graph, the single declaration that exporter, manifest, backends, docs and tests read.

Shape letters: B batch, T rows of a pass, P cached tokens in view, M draft sources, R = T + M*K, G
rows decoded to logits.
"""

from dataclasses import dataclass
from typing import Any

TOP_K = 64  # guesses listed for each row: the path correction re-ranks them, so many more than a tree is wide


@dataclass(frozen=True)
class ModelConfig:
    """The blueprint of a decoder-only model: everything the graphs depend on, and nothing of the
    weights.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int  # context length in tokens
    tie_word_embeddings: bool
    rope_type: str  # informative: cos and sin are tables in model.safetensors
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm over head_dim on queries and keys (Qwen3)
    sliding_window: int | None = None  # tokens a row sees, itself included; None sees all


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: name, dtype and shape; a string dimension is dynamic and named by
    its shape letter.
    """

    name: str
    dtype: str
    shape: tuple[Any, ...]


@dataclass(frozen=True)
class GraphSpec:
    """A graph's inputs and outputs in order. Exporter, backends, docs and tests read this one
    declaration.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def output(self, name: str) -> TensorSpec:
        return next(spec for spec in self.outputs if spec.name == name)


def graph_specs(
    config: ModelConfig, prediction_layer: int, num_predictors: int, dtype: str
) -> dict[str, GraphSpec]:
    """The declarations of all graphs that a bundle with `num_predictors` holds (none: no predictors
    graph).
    """
    c, split = config, prediction_layer
    specs = {
        "lower": GraphSpec(
            "lower",
            (
                TensorSpec("input_ids", "int64", ("B", "T")),
                *_attention_inputs("T", dtype),
                *_cache(c, range(split), "past", "P", dtype),
            ),
            (
                TensorSpec("hidden_states", dtype, ("B", "T", c.hidden_size)),
                *_cache(c, range(split), "new", "T", dtype),
            ),
        ),
        "predictors": GraphSpec(
            "predictors",
            (
                TensorSpec("hidden_states", dtype, ("B", "T", c.hidden_size)),
                TensorSpec("source_rows", "int64", ("B", "M")),
            ),
            (TensorSpec("hidden_states_out", dtype, ("B", "R", c.hidden_size)),),
        ),
        "upper": GraphSpec(
            "upper",
            (
                TensorSpec("hidden_states", dtype, ("B", "R", c.hidden_size)),
                *_attention_inputs("R", dtype),
                TensorSpec("logits_rows", "int64", ("B", "G")),
                *_cache(c, range(split, c.num_hidden_layers), "past", "P", dtype),
            ),
            (
                TensorSpec("logits", "float32", ("B", "G", c.vocab_size)),
                TensorSpec("top_ids", "int64", ("B", "G", min(TOP_K, c.vocab_size))),
                TensorSpec("top_logprobs", "float32", ("B", "G", min(TOP_K, c.vocab_size))),
                *_cache(c, range(split, c.num_hidden_layers), "new", "R", dtype),
            ),
        ),
    }
    if not num_predictors:
        del specs["predictors"]
    return specs


def _attention_inputs(rows: str, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    return TensorSpec("position_ids", "int64", ("B", rows)), TensorSpec(
        "attention_bias", dtype, ("B", 1, rows, f"P+{rows}")
    )


def _cache(c: ModelConfig, layers: range, kind: str, slots: str, dtype: str) -> tuple[TensorSpec, ...]:
    shape = (slots, "B", c.num_key_value_heads, c.head_dim)
    return tuple(
        TensorSpec(f"{kind}_{part}.{layer}", dtype, shape) for layer in layers for part in ("key", "value")
    )
