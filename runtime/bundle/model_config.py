"""The blueprint of a decoder-only model: everything its graphs depend on, and nothing of the
weights.

In: numbers from a checkpoint's own description. Out: `ModelConfig`, in which architectures differ
as data, `Precision`, the types that a bundle is written in, and `Quantization`, what its weights are
where they are integers.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.errors import FirpError

_MOST_LAYERS = 10_000
METHODS = ("int8", "int4")
# Of one weight [out, in]. "int8 rows": one scale an output, and activations rounded to int8 row by
# row as they come, so that a product is one of integers. "blocks": one scale for every 32 inputs of an
# output.
ROWS, BLOCKS8, BLOCKS4 = "int8 rows", "int8 blocks", "int4 blocks"
FORMATS = (ROWS, BLOCKS8, BLOCKS4)
BLOCK = 32  # inputs that share a scale


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes and variants of attention, the same in all layers."""

    num_heads: int  # H, of queries
    num_key_value_heads: int  # Hkv
    head_dim: int  # Dh
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool  # a norm over head_dim on queries and keys

    @property
    def query_size(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Features of all key heads, which are those of all value heads."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class MlpConfig:
    """Gated by SiLU."""

    intermediate_size: int
    bias: bool


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions. Row p is turned by p times each frequency; cos and sin are tables in
    model.safetensors.
    """

    frequencies: tuple[float, ...]  # [Dh / 2] radians a position, whatever scaling included
    scale: float  # of cos and sin


@dataclass(frozen=True)
class NormConfig:
    """RMSNorm."""

    epsilon: float


@dataclass(frozen=True)
class LayerConfig:
    """Properties in which one layer may differ from the others."""

    window: int | None  # tokens a row sees, itself included; None sees all


@dataclass(frozen=True)
class ModelConfig:
    """Blueprint of a model: everything that its graphs depend on."""

    architecture: str  # transformers' name of it
    vocab_size: int  # V
    hidden_size: int  # D
    max_position_embeddings: int  # context length in tokens
    tie_word_embeddings: bool
    attention: AttentionConfig
    mlp: MlpConfig
    rope: RopeConfig
    norm: NormConfig
    layers: tuple[LayerConfig, ...]  # [N]

    @property
    def num_hidden_layers(self) -> int:
        """N: the number of layers."""
        return len(self.layers)

    @property
    def sliding_window(self) -> int | None:
        """The window of every layer."""
        return self.layers[0].window

    def validate(self, where: str) -> None:
        """Raises FirpError for what is no model, or is none that the graphs can express."""
        bad = f"bad model in {where}"
        for name, value in _integers(self, ""):
            if not 1 <= value < 2**31:
                raise FirpError(bad, got=f"{name} {value}", expected="a size of a real model")
        if not 2 <= len(self.layers) < _MOST_LAYERS:
            raise FirpError(bad, got=f"{len(self.layers)} layers", expected=f"2 to {_MOST_LAYERS - 1}")
        if len(windows := {layer.window for layer in self.layers}) > 1:
            raise FirpError(bad, got=f"layers with windows {windows}", expected="one window for all layers")
        attention = self.attention
        rope = self.rope
        if attention.num_heads % attention.num_key_value_heads:
            heads = f"{attention.num_heads} query, {attention.num_key_value_heads} key/value heads"
            raise FirpError(bad, got=heads, expected="heads that divide")
        if 2 * len(rope.frequencies) != attention.head_dim:
            got = f"{len(rope.frequencies)} rope frequencies for head_dim {attention.head_dim}"
            raise FirpError(bad, got=got, expected="one for two dimensions")
        if not all(0 < number < math.inf for number in (*rope.frequencies, rope.scale)):
            raise FirpError(bad, got="rope", expected="positive, finite frequencies and scale")
        if not 0 < self.norm.epsilon < 1:
            raise FirpError(bad, got=f"norm.epsilon {self.norm.epsilon}", expected="between 0 and 1")


def _integers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """Every integer of nested dataclasses and tuples, with the path to it."""
    if type(value) is int:
        yield name, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _integers(item, f"{name}[{index}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _integers(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))


@dataclass(frozen=True)
class Precision:
    """The types of a bundle; a tensor's own record says its type."""

    weights: str  # of the weight files
    compute: str  # of hidden states, masks and what the graphs do with them
    cache: str  # of keys and values

    @staticmethod
    def uniform(dtype: str) -> "Precision":
        """One dtype for weights, computation and cache."""
        return Precision(dtype, dtype, dtype)

    def validate(self, where: str) -> None:
        """Raises FirpError for types that no graph is made in, so far any three that differ."""
        types = (self.weights, self.compute, self.cache)
        if unknown := [dtype for dtype in types if dtype not in MODEL_DTYPES]:
            raise FirpError(
                f"unknown dtype in {where}", got=", ".join(unknown), expected=" or ".join(MODEL_DTYPES)
            )
        if len(set(types)) > 1:
            got = f"weights {self.weights}, compute {self.compute}, cache {self.cache}"
            raise FirpError(f"mixed precision in {where}", got=got, expected="one type for all three")


@dataclass(frozen=True)
class LinearFormat:
    """How one weight is stored, and how far its outputs on the calibration text moved: the root mean
    square over rows of the difference's norm by the row's norm. None where it was not measured.
    """

    format: str  # one of FORMATS
    kept: bool  # the integers and scales are the checkpoint's own
    rows_error: float | None  # as int8 rows
    blocks_error: float | None  # as blocks


@dataclass(frozen=True)
class Quality:
    """The quantized bundle against the model in float32 on text that it was not calibrated on."""

    tokens: int  # that were predicted
    float_perplexity: float
    perplexity: float
    kl: float  # mean Kullback-Leibler divergence of the next token's distribution, in nats
    top1: float  # share of tokens where both rank the same token first

    @property
    def loss_percent(self) -> float:
        """By how many percent the perplexity rose."""
        return 100 * (self.perplexity / self.float_perplexity - 1)


@dataclass(frozen=True)
class Quantization:
    """What a quantized bundle's weights are."""

    method: str  # one of METHODS
    calibration_tokens: int
    linears: dict[str, LinearFormat]  # by the names of the weights
    quality: Quality | None  # None: not measured, as in a bundle that was not verified

    @property
    def takes_drafts(self) -> bool:
        """Whether a row of a chain has the same bits alone and among others, so that drafted decoding
        is plain decoding. In blocks ONNX Runtime multiplies one row by another kernel than several.
        """
        return all(linear.format == ROWS for linear in self.linears.values())

    def validate(self, where: str) -> None:
        """Raises FirpError for a method or a format that is unknown."""
        formats = {linear.format for linear in self.linears.values()}
        if unknown := sorted({self.method} - set(METHODS)) + sorted(formats - set(FORMATS)):
            raise FirpError(
                f"unknown quantization in {where}", got=", ".join(unknown), expected=", ".join(METHODS)
            )


def refuse_blocks(quantization: Quantization | None, asked: str) -> None:
    """Raises FirpError for drafts of a bundle that can have none. asked: what they were wanted for."""
    if quantization and not quantization.takes_drafts:
        raise FirpError(
            f"weights in blocks decode plainly ({quantization.method})",
            got=asked,
            expected="drafts that change no token",
            fix="export with --quantize int8, or none",
        )


def refuse_quantized(quantization: Quantization | None, runner: str) -> None:
    """Raises FirpError where `runner` would have to run a quantized bundle and cannot."""
    if quantization:
        raise FirpError(
            f"{runner} does not run {quantization.method} bundles",
            got=f"weights in {', '.join(sorted({each.format for each in quantization.linears.values()}))}",
            expected="a bundle that is not quantized, or the cpu backend",
            fix="export with --quantize none",
        )
