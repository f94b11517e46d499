"""Attention over a cache of int8 beside one of float32: does a quarter of the bytes pay?

    python benchmarks/cache_formats.py [--heads 9 3 64] [--layers 20]

Keys and values lie in int8 with one scale a head and token, as the graph would hold them, and
DequantizeLinear makes float32 of them in every pass, for ONNX Runtime's Attention takes nothing
smaller. Both forms take turns; times are those of one layer.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.tape import Tape
from table import Result

from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend

SLOTS = (320, 2112, 8256)
ROWS = (1, 8)
TURNS = 15
FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


def session(form, heads, layers):
    """Layers of attention, one after the other, over caches of their own."""
    query_heads, kv_heads, size = heads
    tape = Tape()

    def given(name, dtype, shape):
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    query = given("query", FLOAT, [1, query_heads, "T", size])
    bias = given("bias", FLOAT, [1, 1, "T", "S"])
    inputs = [query, bias]
    for layer in range(layers):
        parts = []
        for part in ("key", "value"):
            stored = given(f"{part}.{layer}", FLOAT if form == "float32" else INT8, [1, kv_heads, "S", size])
            inputs.append(stored)
            if form == "int8":
                scale = given(f"{part}_scale.{layer}", FLOAT, [1, kv_heads, "S", 1])
                inputs.append(scale)
                stored = tape.op("DequantizeLinear", [stored, scale], {"axis": 3, "block_size": size})
            parts.append(stored)
        query = tape.op("Attention", [query, *parts, bias], {"scale": 1.0})
    query.name, query.type, query.shape = "out", ir.TensorType(FLOAT), ir.Shape([1, query_heads, "T", size])
    graph = ir.Graph(inputs, [query], nodes=tape.nodes, opset_imports={"": 24}, name=form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.onnx"
        ir.save(ir.Model(graph, ir_version=11), path)
        return ort.InferenceSession(path, OnnxRuntimeBackend().options(), providers=["CPUExecutionProvider"])


def feeds(form, heads, layers, slots, rows):
    query_heads, kv_heads, size = heads
    rng = np.random.default_rng(0)
    arrays = {
        "query": rng.standard_normal((1, query_heads, rows, size), np.float32) / size,
        "bias": np.zeros((1, 1, rows, slots), np.float32),
    }
    for layer in range(layers):
        for part in ("key", "value"):
            values = rng.standard_normal((1, kv_heads, slots, size), np.float32)
            scale = np.abs(values).max(-1, keepdims=True) / 127
            arrays[f"{part}.{layer}"] = values
            if form == "int8":
                arrays[f"{part}.{layer}"] = np.rint(values / scale).astype(np.int8)
                arrays[f"{part}_scale.{layer}"] = scale.astype(np.float32)
    return arrays


@click.command()
@click.option("--heads", type=int, nargs=3, default=(9, 3, 64), help="H, Hkv and Dh.")
@click.option("--layers", default=20, show_default=True)
def main(heads, layers):
    forms = ("float32", "int8")
    sessions = {form: session(form, heads, layers) for form in forms}
    result = Result("cache_formats", "A cache in int8 beside one in float32")
    caption = f"Attention of one layer, ms, {heads[0]} heads of queries, {heads[1]} of keys, of {heads[2]}"
    table = result.table(caption, "cached", "rows", *forms, "int8 / float32", "error of int8")
    for slots in SLOTS:
        for rows in ROWS:
            given = {form: feeds(form, heads, layers, slots, rows) for form in forms}
            times = {form: [] for form in forms}
            out = {}
            for turn in range(TURNS):
                for form in forms:
                    start = time.perf_counter()
                    (out[form],) = sessions[form].run(None, given[form])
                    if turn > 2:
                        times[form].append((time.perf_counter() - start) * 1e3 / layers)
            one = {form: feeds(form, heads, 1, slots, rows) for form in forms}
            single = {form: session(form, heads, 1).run(None, one[form])[0] for form in forms}
            error = np.linalg.norm(single["int8"] - single["float32"]) / np.linalg.norm(single["float32"])
            float_ms, int8_ms = (statistics.median(times[form]) for form in forms)
            shown = f"{float_ms:.3f}", f"{int8_ms:.3f}", f"{int8_ms / float_ms:.2f}", f"{error:.1%}"
            table.add(slots, rows, *shown)
    result.write()


if __name__ == "__main__":
    main()
