"""One decoder layer as ONNX nodes (opset 24, standard operators).

In: the residual stream and the cache views of one layer. Out: the residual stream and this pass's
new keys and values. What architectures differ in is in `ModelConfig`: biases, norms on queries and
keys, head counts. There are no subclasses. The shapes of the cache follow the "prefix" contract: a
graph reads past [P, B, Hkv, Dh] and returns new [rows, B, Hkv, Dh].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graph_spec import ModelConfig

Weights = Callable[[str], ir.Value]  # name -> initializer
# of layer i, as layers.{i}.attention_out: the residual stream after attention, after all
LAYER_OUTPUTS = ("attention_out", "out")


class LayerCache(NamedTuple):
    """Keys and values of one layer, [slots, B, Hkv, Dh]: the past that goes in, or the new rows
    that come out.
    """

    key: ir.Value
    value: ir.Value


class GraphBuilder:
    """Nodes and initializers of one graph in the making; `op` adds a node and returns its output."""

    def __init__(self, config: ModelConfig, dtype: str, weights: Weights):
        self.config, self.dtype, self.weight = config, ir.DataType[DTYPES[dtype].onnx].numpy(), weights
        self.tape = Tape()
        self._constants: dict[str, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, output: str | None = None, **attributes: Any) -> ir.Value:
        value = self.tape.op(op_type, list(inputs), attributes or None)
        if output:
            value.name = output
        return value

    def split(self, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
        """Along the last axis."""
        return list(
            self.tape.op_multi_out("Split", [value, self.ints(sizes)], {"axis": -1}, num_outputs=len(sizes))
        )

    def ints(self, values: list[int]) -> ir.Value:
        return self._constant(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: float) -> ir.Value:
        return self._constant(f"scalar_{value:.9g}", np.array(value, self.dtype))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = self.tape.initializer(ir.tensor(array, name=name))
        return self._constants[name]

    def linear(self, rows: ir.Value, name: str, bias: bool) -> ir.Value:
        """rows [n, in] -> [n, out] by a weight [out, in], Hugging Face's own layout."""
        inputs = [rows, self.weight(f"{name}.weight")] + ([self.weight(f"{name}.bias")] if bias else [])
        return self.op("Gemm", *inputs, transB=1)

    def rms_norm(self, value: ir.Value, name: str) -> ir.Value:
        return self.op(
            "RMSNormalization",
            value,
            self.weight(f"{name}.weight"),
            axis=-1,
            epsilon=self.config.rms_norm_eps,
        )

    def rows(self, value: ir.Value, features: int) -> ir.Value:
        """[B, T, features] -> [B*T, features]."""
        return self.op("Reshape", value, self.ints([-1, features]))

    def batch_shape(self, value: ir.Value, *features: int) -> ir.Value:
        """The shape [B, T, *features] for a Reshape, B and T being the first two axes of `value`."""
        return self.op("Concat", self.op("Shape", value, start=0, end=2), self.ints(list(features)), axis=0)


class Attention:
    """What every layer of one graph shares: row positions, the mask, cos and sin, and the shapes to
    reshape to.
    """

    def __init__(self, b: GraphBuilder, like: ir.Value, position_ids: ir.Value, attention_bias: ir.Value):
        c = b.config
        self.position_ids, self.bias = position_ids, attention_bias
        self.cos, self.sin = b.weight("rope.cos"), b.weight("rope.sin")
        self.query_shape = b.batch_shape(like, c.num_attention_heads, c.head_dim)
        self.kv_shape = b.batch_shape(like, c.num_key_value_heads, c.head_dim)
        self.scale = b.scalar(c.head_dim**-0.5)

    def rotate(self, b: GraphBuilder, heads: ir.Value) -> ir.Value:
        """[B, H, T, Dh] by its rows' positions."""
        return b.op("RotaryEmbedding", heads, self.cos, self.sin, self.position_ids)


def decoder_layer(
    b: GraphBuilder, index: int, stream: ir.Value, shared: Attention, past: LayerCache
) -> tuple[ir.Value, LayerCache]:
    """stream [B*T, D] -> (stream [B*T, D], new keys and values [T, B, Hkv, Dh])."""
    c, name = b.config, f"layers.{index}"
    attended, new = _attention(b, name, b.rms_norm(stream, f"{name}.input_norm"), shared, past)
    after_attention, after_mlp = (f"{name}.{output}" for output in LAYER_OUTPUTS)
    stream = b.op("Add", stream, attended, output=after_attention)
    stream = b.op("Add", stream, _mlp(b, name, b.rms_norm(stream, f"{name}.mlp_norm"), c), output=after_mlp)
    return stream, new


def _attention(
    b: GraphBuilder, name: str, rows: ir.Value, shared: Attention, past: LayerCache
) -> tuple[ir.Value, LayerCache]:
    c = b.config
    query_size, kv_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    query, key, value = b.split(
        b.linear(rows, f"{name}.qkv_proj", c.qkv_bias), [query_size, kv_size, kv_size]
    )
    query = b.op("Reshape", query, shared.query_shape)  # [B, T, H, Dh]
    key = b.op("Reshape", key, shared.kv_shape)  # [B, T, Hkv, Dh]
    value = b.op("Reshape", value, shared.kv_shape)
    if c.qk_norm:
        query, key = b.rms_norm(query, f"{name}.q_norm"), b.rms_norm(key, f"{name}.k_norm")
    query = shared.rotate(b, b.op("Transpose", query, perm=[0, 2, 1, 3]))  # [B, H, T, Dh]
    # on the rows: a scale inside Attention makes TensorRT multiply all keys
    query = b.op("Mul", query, shared.scale)
    key = shared.rotate(b, b.op("Transpose", key, perm=[0, 2, 1, 3]))
    new = LayerCache(b.op("Transpose", key, perm=[2, 0, 1, 3]), b.op("Transpose", value, perm=[1, 0, 2, 3]))
    keys, values = (
        b.op("Transpose", b.op("Concat", before, rows_now, axis=0), perm=[1, 2, 0, 3])  # [B, Hkv, P+T, Dh]
        for before, rows_now in zip(past, new, strict=True)
    )
    attended = b.op("Attention", query, keys, values, shared.bias, scale=1.0)  # [B, H, T, Dh]
    attended = b.rows(b.op("Transpose", attended, perm=[0, 2, 1, 3]), query_size)
    return b.linear(attended, f"{name}.o_proj", c.o_bias), new


def _mlp(b: GraphBuilder, name: str, rows: ir.Value, c: ModelConfig) -> ir.Value:
    gate, up = b.split(b.linear(rows, f"{name}.gate_up_proj", c.mlp_bias), [c.intermediate_size] * 2)
    activated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)  # SwiGLU
    return b.linear(activated, f"{name}.down_proj", c.mlp_bias)
