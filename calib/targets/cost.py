"""What a pass costs at the least: the bytes that must move and the arithmetic that must be done,
and the time that takes here.

In: a bundle's manifest, the shapes of a pass, the device's measured peaks. Out: a `Cost`, and its
`Roofline`: a pass can be no faster than its bytes at the peak bandwidth, nor than its FLOPs at the
peak rate (Williams et al., "Roofline", 2009). Counted are weights once, the declared inputs and
outputs once, of a cache what a window does not hide, the arithmetic of GEMMs and attention; what a graph
copies on the way is not, nor the one row that is decoded to guesses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import PREFIX, TensorSpec
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.precision import BLOCK, BLOCKS4, BLOCKS8, DIGITS, FINE_ROWS, OFFSET_BLOCKS4, ROWS
from firp.runtime.bundle.weight_table import head_name, layer_shapes, weight_shapes

_EXPERT = ".experts."  # in the names of their weights
# of a value of a quantized weight, with its share of what a block has: a scale, and a zero point of as
# many bits as the value; and digits of an offset
_VALUE_BYTES = {
    ROWS: 1.0,
    FINE_ROWS: 1.0,
    BLOCKS8: 1 + 5 / BLOCK,
    BLOCKS4: (1 + 1 / BLOCK) / 2 + 4 / BLOCK,
    OFFSET_BLOCKS4: (1 + DIGITS / BLOCK) * ((1 + 1 / BLOCK) / 2 + 4 / BLOCK),
}


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


def dimensions(graph: str, point: Point, manifest: Manifest) -> dict[str, int]:
    """The sizes behind the shape letters. Every row is decoded to logits, one to guesses too, and
    every row is a draft source.
    """
    rows = point.rows
    cached = point.cached_tokens
    pass_rows = rows * (1 + manifest.num_predictors) if graph == "predictors" else rows
    return {
        "B": point.batch, "P": cached, "W": _cached_in_view(manifest.model.window, cached),
        "S": cached + rows, "T": rows, "M": rows, "R": pass_rows, "G": rows, "E": 1,
    }  # fmt: skip


def pass_cost(manifest: Manifest, graph: str, point: Point) -> Cost:
    """The cost of one pass of a graph."""
    model = manifest.model
    spec = manifest.graphs_for(PREFIX)[graph]  # which names what is read and what is written
    letters, layers = dimensions(graph, point, manifest), manifest.layers(graph)
    tensors = (*spec.inputs, *spec.outputs)
    seen = sum(_cached_in_view(model.layers[layer].window, point.cached_tokens) for layer in layers)
    cache = _bytes((*spec.past, *spec.new), letters)
    shapes = {name: shape for layer in layers for name, shape in layer_shapes(model, layer).items()}
    count, head = point.batch * point.rows, 0
    keys = seen + point.rows * len(layers)  # of all layers
    running = _running_experts(model, count)
    weights = sum(
        int(_weight_bytes(manifest, name, prod(shape)) * (running.read if _EXPERT in name else 1))
        for name, shape in shapes.items()
    )
    linear = sum(
        int(prod(shape) * (running.of_a_row if _EXPERT in name else 1))
        for name, shape in shapes.items()
        if len(shape) >= 2
    )
    if graph == "lower":
        # of the embedding, the rows looked up
        weights += _weight_bytes(manifest, "embed_tokens.weight", count * model.hidden_size)
    elif graph == "upper":
        table = weight_shapes(model)
        head = prod(table[head_name(model)])
        weights += _weight_bytes(manifest, head_name(model), head)
        weights += _weight_bytes(manifest, "norm.weight", prod(table["norm.weight"]))
    else:
        linear = manifest.num_predictors * model.hidden_size**2
        weights = _weight_bytes(manifest, "predictors.weight", linear)
    return Cost(
        weight_bytes=weights,
        cache_bytes=cache,
        activation_bytes=_bytes(tensors, letters) - cache,
        linear_flops=2 * linear * count,
        attention_flops=4 * count * keys * model.attention.query_size,
        head_flops=2 * head * count,
    )


def _cached_in_view(window: int | None, cached: int) -> int:
    """Cached tokens that a row after them sees."""
    return cached if window is None else min(cached, window - 1)


class _Running(NamedTuple):
    """Shares of all experts of a layer."""

    of_a_row: float  # that compute one row
    read: float  # that some row of a pass chose, were choices independent


def _running_experts(model: ModelConfig, rows: int) -> _Running:
    if model.experts is None:
        return _Running(1.0, 1.0)
    share = model.experts.per_token / model.experts.count
    return _Running(share, 1 - (1 - share) ** rows)


def _weight_bytes(manifest: Manifest, name: str, count: int) -> int:
    """Bytes of that many values of a weight, scales of blocks included."""
    linears = manifest.quantization.linears if manifest.quantization else {}
    if found := linears.get(name.removesuffix(".weight")):
        return int(count * _VALUE_BYTES[found.format])
    return count * DTYPES[manifest.precision.weights].itemsize


def _bytes(tensors: Iterable[TensorSpec], letters: Mapping[str, int]) -> int:
    return sum(prod(tensor.sizes(letters)) * DTYPES[tensor.dtype].itemsize for tensor in tensors)


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
