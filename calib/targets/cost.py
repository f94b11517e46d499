"""What a pass costs at the least: the bytes that must move and the arithmetic that must be done,
and the time that takes here.

In: a model's blueprint, the shapes of a pass, the device's measured peaks. Out: a `Cost`, and its
`Roofline`: a pass can be no faster than its bytes at the peak bandwidth, nor than its FLOPs at the
peak rate (Williams et al., "Roofline", 2009). Counted are weights once, the declared inputs and
outputs once, the arithmetic of GEMMs and attention; what a graph copies on the way is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from firp.runtime.bundle.graph_spec import GraphSpec, ModelConfig, TensorSpec

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
_CACHE = ("past_", "new_")


class Point(NamedTuple):
    """One point of the grid: the shapes of a pass."""

    rows: int
    cached_tokens: int
    batch: int


@dataclass(frozen=True)
class Cost:
    weight_bytes: int
    cache_bytes: int  # keys and values read, and those written
    activation_bytes: int  # the other inputs and outputs
    linear_flops: int  # the GEMMs of the layers, or of the predictors
    attention_flops: int
    head_flops: int

    @property
    def moved_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops + self.head_flops


@dataclass(frozen=True)
class Peaks:
    """What the device reached when it did one thing only (firp.calib.targets.peaks)."""

    bandwidth_gb_per_s: float  # 1e9 bytes read or written
    gflop_per_s: float | None  # None: not measured on this backend
    measured_by: str


@dataclass(frozen=True)
class Roofline:
    """Least times of a pass, and their shares of the measured time; above 1 where weights stay in a
    cache that is faster than memory, so never clamped.
    """

    flops_per_byte: float
    bandwidth_ms: float
    arithmetic_ms: float | None
    bandwidth_share: float
    arithmetic_share: float | None

    @property
    def share(self) -> float:
        """The share of the limit that binds."""
        return max(self.bandwidth_share, self.arithmetic_share or 0.0)


def dimensions(graph: str, point: Point, num_predictors: int) -> dict[str, int]:
    """The sizes behind the shape letters. Every row is decoded, and every row is a draft source."""
    rows = point.rows
    pass_rows = rows * (1 + num_predictors) if graph == "predictors" else rows
    return {"B": point.batch, "P": point.cached_tokens, "T": rows, "M": rows, "R": pass_rows, "G": rows}


def sizes(tensor: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a declared input or output, its letters and sums of letters replaced."""
    return tuple(_size(dimension, dims) for dimension in tensor.shape)


def _size(dimension: Any, dims: Mapping[str, int]) -> int:
    return sum(dims[letter] for letter in dimension.split("+")) if isinstance(dimension, str) else dimension


def pass_cost(
    spec: GraphSpec, model: ModelConfig, layers: int, num_predictors: int, dtype: str, point: Point
) -> Cost:
    """The cost of one pass of a graph that holds `layers` layers of the model."""
    c = model
    dims = dimensions(spec.name, point, num_predictors)
    item = _ITEM_BYTES[dtype]
    tensors = [
        (tensor, prod(sizes(tensor, dims)) * _ITEM_BYTES[tensor.dtype])
        for tensor in (*spec.inputs, *spec.outputs)
    ]
    cache = sum(size for tensor, size in tensors if tensor.name.startswith(_CACHE))
    count = point.batch * point.rows
    keys = point.cached_tokens + point.rows
    weights = layers * layer_parameters(c)
    head = 0
    linear = layers * layer_gemm_parameters(c)
    if spec.name == "lower":
        weights += count * c.hidden_size  # of the embedding, the rows looked up
    elif spec.name == "upper":
        head = c.vocab_size * c.hidden_size
        weights += head + c.hidden_size  # and the last norm
    else:
        weights = linear = num_predictors * c.hidden_size**2
    return Cost(
        weight_bytes=weights * item,
        cache_bytes=cache,
        activation_bytes=sum(size for _, size in tensors) - cache,
        linear_flops=2 * linear * count,
        attention_flops=4 * layers * count * keys * c.num_attention_heads * c.head_dim,
        head_flops=2 * head * count,
    )


def layer_gemm_parameters(c: ModelConfig) -> int:
    """Parameters of q, k, v, o, gate, up and down in one layer."""
    query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return c.hidden_size * (2 * query + 2 * kv + 3 * c.intermediate_size)


def layer_parameters(c: ModelConfig) -> int:
    query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    biases = (
        c.qkv_bias * (query + 2 * kv)
        + c.o_bias * c.hidden_size
        + c.mlp_bias * (2 * c.intermediate_size + c.hidden_size)
    )
    return layer_gemm_parameters(c) + biases + 2 * c.hidden_size + c.qk_norm * 2 * c.head_dim


def roofline(cost: Cost, measured_ms: float, peaks: Peaks) -> Roofline:
    bandwidth_ms = cost.moved_bytes / peaks.bandwidth_gb_per_s / 1e6
    arithmetic_ms = cost.flops / peaks.gflop_per_s / 1e6 if peaks.gflop_per_s else None
    return Roofline(
        flops_per_byte=cost.flops / cost.moved_bytes,
        bandwidth_ms=bandwidth_ms,
        arithmetic_ms=arithmetic_ms,
        bandwidth_share=bandwidth_ms / measured_ms,
        arithmetic_share=None if arithmetic_ms is None else arithmetic_ms / measured_ms,
    )
