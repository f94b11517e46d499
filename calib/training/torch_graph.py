"""The graphs of a bundle, run in torch as they are described: one description, whose operators compute
at once and can be differentiated.

In: a Hugging Face model, which holds the weights, and its checkpoint, which says how ours lie in them.
Out: a builder for `firp.runtime.bundle.graphs` whose values are tensors. Shapes are lists of integers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.rope import rope_tables
from firp.export.weights.torch_model import tensors_of
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graphs.builder import GraphBuilder


class TorchWeights:
    """Our weights by name, made of the parameters of a Hugging Face model; linear layers stay where they
    are.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint):
        state = model.state_dict()
        self._parameters: dict[str, Tensor] = {}
        for name, sources in tensors_of(model, checkpoint).items():
            shapes = [checkpoint.tensors[source].shape for source in sources]
            whole = state[name].reshape(-1, *shapes[0][1:]) if len(sources) > 1 else state[name]
            parts = whole.split([shape[0] for shape in shapes]) if len(sources) > 1 else [whole]
            self._parameters |= dict(zip(sources, parts, strict=True))
        self._weights = {weight.name: weight for weight in checkpoint.weights}
        self._made = {
            name: torch.from_numpy(table).to(model.device)
            for name, table in rope_tables(checkpoint.config).items()
        }
        self._like = self._parameters[checkpoint.weights[0].sources[0]]

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._make(self._weights[name])
        return self._made[name]

    def linear(self, rows: Tensor, name: str) -> Tensor:
        """rows [n, in] -> [n, out]."""
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        biases = bias.sources if bias else [None] * len(weight.sources)
        parts = [
            F.linear(rows, matrix.T if weight.layout.transposed else matrix, side and self._parameters[side])
            for matrix, side in zip(self._tensors(weight), biases, strict=True)
        ]
        found = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        order = weight.layout.order
        if weight.layout.alternating:
            return found.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        if order is None:
            return found
        blocks = found.unflatten(-1, (len(order), -1))
        return blocks[..., torch.tensor(order, device=rows.device), :].flatten(-2)

    def _tensors(self, weight: Weight) -> list[Tensor]:
        return [self._parameters[source] for source in weight.sources]

    def _make(self, weight: Weight) -> Tensor:
        layout = weight.layout
        if layout.ones:
            return torch.ones(weight.shape, dtype=self._like.dtype, device=self._like.device)
        parts = self._tensors(weight)
        parts = [part.reshape(-1) if part.ndim == 0 else part for part in parts]
        whole = (torch.cat(parts) if len(parts) > 1 else parts[0])[layout.skipped :]
        if layout.order:
            blocks = whole.unflatten(0, (layout.blocks or len(layout.order), -1))
            whole = blocks[torch.tensor(layout.order, device=whole.device)]
        return whole.float() + 1 if layout.plus_one else whole.reshape(weight.shape)


class TorchGraph(GraphBuilder):
    """Computes what a graph describes."""

    weights: TorchWeights

    def op(self, op_type: str, *inputs: Any, output: str | None = None, **attributes: Any) -> Any:
        """The output of one operator."""
        return _OPERATORS[op_type](*inputs, **attributes)

    def split(self, value: Tensor, sizes: list[int], axis: int = -1) -> list[Tensor]:
        """Split a value along an axis."""
        return list(value.split(sizes, axis))

    def ints(self, values: list[int]) -> list[int]:
        """A shape, or axes."""
        return values

    def scalar(self, value: float) -> float:
        """A number."""
        return value

    def values(self, name: str, values: Sequence[float], shape: tuple[int, ...]) -> Tensor:
        """A constant array in the graph's type."""
        like = self.weights["embed_tokens.weight"]
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(shape)

    def constant(self, name: str, dtype: str, content: np.ndarray) -> Any:
        """A number, or a vector of them."""
        if not content.ndim:
            return content.item()
        return torch.from_numpy(content).to(self.weights["embed_tokens.weight"].device)

    def top(self, value: Tensor, count: int) -> list[Tensor]:
        """The largest values of the last axis, the best first, and their places."""
        return list(value.topk(count, -1))

    def linear(self, rows: Tensor, name: str) -> Tensor:
        """Project rows [n, in] -> [n, out]."""
        return self.weights.linear(rows, name)

    def linear_of_each(self, rows: Tensor, name: str, count: int, shared: bool) -> Tensor:
        """Project rows [n, in] or [count, n, in] -> [count, n, out]."""
        before, _, module = name.rpartition(".")
        each = zip(range(count), rows.expand(count, -1, -1), strict=True)
        return torch.stack([self.linear(some, f"{before}.{index}.{module}") for index, some in each])

    def few_or_many(
        self, values: Sequence[Tensor], most: int, few: Callable[..., Tensor], many: Callable[..., Tensor]
    ) -> Tensor:
        """What `many` makes: rows of training are."""
        return many(*values)


def _reshape(value: Tensor, shape: list[int]) -> Tensor:
    return value.reshape([value.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _unsqueeze(value: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        value = value.unsqueeze(axis)
    return value


def _concat(*values: Any, axis: int) -> Any:
    """Of shapes too."""
    if isinstance(values[0], list):
        return [size for shape in values for size in shape]
    return torch.cat(values, axis)


def _rms_norm(value: Tensor, weight: Tensor, axis: int, epsilon: float) -> Tensor:
    wide = value.float()
    wide = wide * torch.rsqrt(wide.square().mean(axis, keepdim=True) + epsilon)
    return (wide * weight.float()).to(value.dtype)


def _layer_norm(
    value: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float
) -> Tensor:
    side = None if bias is None else bias.float()
    return F.layer_norm(value.float(), weight.shape, weight.float(), side, epsilon).to(value.dtype)


def _rotary_embedding(
    heads: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    rotary_embedding_dim: int = 0,
    interleaved: int = 0,
) -> Tensor:
    """Turn pairs of features of heads [B, H, T, Dh] by their rows' positions [B, T]."""
    turned = rotary_embedding_dim or heads.shape[-1]
    some, rest = heads[..., :turned], heads[..., turned:]
    cos, sin = (table[positions].to(heads.dtype)[:, None] for table in (cos, sin))  # [B, 1, T, pairs]
    first, second = (some[..., ::2], some[..., 1::2]) if interleaved else some.chunk(2, -1)
    pairs = first * cos - second * sin, second * cos + first * sin
    some = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat([some, rest], -1) if rest.shape[-1] else some


def _attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    grouped = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, bias, scale=scale, enable_gqa=grouped)


def _minimum(value: Tensor, other: Tensor | float) -> Tensor:
    return torch.minimum(value, other) if isinstance(other, Tensor) else value.clamp(max=other)


_BFLOAT16 = DTYPES["bfloat16"].onnx_number
_OPERATORS: dict[str, Callable] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Attention": _attention,
    "Cast": lambda value, to: value.bfloat16() if to == _BFLOAT16 else value.float(),
    "Clip": torch.clamp,
    "Concat": _concat,
    "Div": lambda a, b: a / b if isinstance(b, Tensor) else torch.div(a, b, rounding_mode="floor"),
    "Equal": torch.eq,
    "Exp": torch.exp,
    "Expand": lambda value, shape: value.expand(torch.broadcast_shapes(value.shape, shape)),
    "Gather": lambda table, ids: table[ids],
    "GatherElements": lambda value, places, axis: value.gather(axis, places),
    "Gelu": lambda value, approximate: F.gelu(value, approximate=approximate),
    "Greater": lambda a, b: a > b,
    "LayerNormalization": _layer_norm,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "Min": _minimum,
    "Mul": torch.mul,
    "RMSNormalization": _rms_norm,
    "Range": torch.arange,
    "ReduceMax": lambda value, axes, keepdims: value.amax(axes, keepdim=bool(keepdims)),
    "ReduceSum": lambda value, axes, keepdims: value.sum(axes, keepdim=bool(keepdims)),
    "Relu": F.relu,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary_embedding,
    "Shape": lambda value, start=0, end=None: list(value.shape[start:end]),
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softmax": lambda value, axis: value.softmax(axis),
    "Squeeze": lambda value, axes=(0,): value[0] if isinstance(value, list) else value.squeeze(axes),
    "Sub": lambda a, b: a - b,
    "Tanh": torch.tanh,
    "Transpose": lambda value, perm: value.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
