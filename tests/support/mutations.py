"""Bundles with one seeded error each: what an exporter could get wrong, and verification must see.

In: the folder of a bundle, which is changed in place. Out: nothing but the error.
"""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from firp.export.sources.safetensors_file import read_safetensors
from firp.export.weights.stream import numpy_dtype
from firp.runtime.bundle.format import MANIFEST_NAME, read_manifest, write_manifest

Mutation = Callable[[Path, random.Random], None]
HIDDEN_SLOT = 3
STORED = ("float32", "float16", "bfloat16", "int8", "uint8")


def edit_weight(bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """name: of a tensor of values or of integers."""
    record = read_safetensors(bundle / "model.safetensors", STORED)[name]
    with record.file.open("r+b") as file:
        file.seek(record.offset)
        dtype = numpy_dtype(record.dtype)
        values = np.frombuffer(file.read(record.nbytes), dtype).reshape(record.shape)
        changed = np.ascontiguousarray(change(values), dtype)
        assert changed.nbytes == record.nbytes
        assert not np.array_equal(changed.ravel(), values.ravel())
        file.seek(record.offset)
        file.write(changed.tobytes())


def edit_graph(bundle: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> None:
    path = bundle / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)
    manifest = read_manifest(bundle / MANIFEST_NAME)
    entry = dataclasses.replace(manifest.files[path.name], size=path.stat().st_size)
    write_manifest(bundle, dataclasses.replace(manifest, files=manifest.files | {path.name: entry}))


def _layer(bundle: Path, rng: random.Random) -> int:
    return rng.randrange(read_manifest(bundle / MANIFEST_NAME).model.num_hidden_layers)


def _graph_of(bundle: Path, layer: int) -> str:
    return "lower" if layer < read_manifest(bundle / MANIFEST_NAME).prediction_layer else "upper"


def _turned(weight: np.ndarray) -> np.ndarray:
    return weight.T if weight.ndim == 2 else weight[::-1]


def transposed_weight(bundle: Path, rng: random.Random) -> None:
    """A square weight, [out, in] written as [in, out]; one of packed integers back to front."""
    edit_weight(bundle, f"layers.{_layer(bundle, rng)}.o_proj.weight", _turned)


def permuted_rows(bundle: Path, rng: random.Random) -> None:
    """Two outputs of one projection exchanged."""

    def exchange(weight: np.ndarray) -> np.ndarray:
        rows = list(range(len(weight)))
        a, b = rng.sample(rows, 2)
        rows[a], rows[b] = b, a
        return weight[rows]

    edit_weight(bundle, f"layers.{_layer(bundle, rng)}.gate_up_proj.weight", exchange)


def damaged_weight(bundle: Path, rng: random.Random) -> None:
    """One value in thousands has the wrong sign."""

    def flip(weight: np.ndarray) -> np.ndarray:
        flipped = weight.copy()
        largest = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        # of two packed integers both go to the other end of their grid
        flipped[largest] = ~weight[largest] if weight.dtype == np.uint8 else -weight[largest]
        return flipped

    edit_weight(bundle, f"layers.{_layer(bundle, rng)}.down_proj.weight", flip)


def epsilon_of(layer: int) -> Mutation:
    """Ten times the epsilon of a layer's first norm."""

    def mutate(bundle: Path, _: random.Random) -> None:
        def change(graph: onnx.GraphProto) -> None:
            norm = next(node for node in graph.node if f"layers.{layer}.input_norm.weight" in node.input)
            next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f *= 10

        edit_graph(bundle, _graph_of(bundle, layer), change)

    return mutate


def shifted_cos(bundle: Path, rng: random.Random) -> None:
    """The table of cosines begins at position 1. (Both tables shifted would be no error that values
    show: rotary attention depends on differences of positions.)
    """
    edit_weight(bundle, "rope.default.cos", lambda table: np.roll(table, -1, axis=0))


def shifted_queries(bundle: Path, rng: random.Random) -> None:
    """The queries of one layer are rotated by the position after their own."""
    layer = _layer(bundle, rng)

    def change(graph: onnx.GraphProto) -> None:
        rotations = [node for node in graph.node if node.op_type == "RotaryEmbedding"]
        first = layer if _graph_of(bundle, layer) == "lower" else layer - _split(bundle)
        rotations[2 * first].input[3] = "next_position"  # a layer rotates its queries, then its keys
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
        graph.node.insert(0, helper.make_node("Add", ["position_ids", "one"], ["next_position"]))

    edit_graph(bundle, _graph_of(bundle, layer), change)


def _split(bundle: Path) -> int:
    return read_manifest(bundle / MANIFEST_NAME).prediction_layer


def hole_in_the_mask(bundle: Path, rng: random.Random) -> None:
    """One slot of the context is hidden from all rows of one half."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == "attention_bias":
                    node.input[index] = "bias_with_a_hole"
        bias = next(given for given in graph.input if given.name == "attention_bias")
        dtype = helper.tensor_dtype_to_np_dtype(bias.type.tensor_type.elem_type)
        constants = {"hole_at": np.int64(HIDDEN_SLOT), "zero": np.int64(0), "step": np.int64(1)}
        constants |= {"hidden": dtype.type(np.finfo(dtype).min), "visible": dtype.type(0)}
        graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
        nodes = [
            helper.make_node("Shape", ["attention_bias"], ["slots_1d"], start=3, end=4),
            helper.make_node("Squeeze", ["slots_1d"], ["slots"]),
            helper.make_node("Range", ["zero", "slots", "step"], ["slot"]),
            helper.make_node("Equal", ["slot", "hole_at"], ["is_hole"]),
            helper.make_node("Where", ["is_hole", "hidden", "visible"], ["hole"]),
            helper.make_node("Add", ["attention_bias", "hole"], ["bias_with_a_hole"]),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)

    edit_graph(bundle, rng.choice(["lower", "upper"]), change)


def skipped_layer(bundle: Path, rng: random.Random) -> None:
    """What follows a layer reads what went into it; its keys and values are still given."""
    layer = rng.randrange(1, _split(bundle) - 1) if _split(bundle) > 2 else 0

    def change(graph: onnx.GraphProto) -> None:
        before = f"layers.{layer - 1}.out" if layer else _embedded_rows(graph)
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == f"layers.{layer}.out":
                    node.input[index] = before

    edit_graph(bundle, "lower", change)


def _embedded_rows(graph: onnx.GraphProto) -> str:
    return next(node.input[0] for node in graph.node if "layers.0.input_norm.weight" in node.input)


MUTATIONS: dict[str, Mutation] = {
    "a transposed weight": transposed_weight,
    "two rows of a weight exchanged": permuted_rows,
    "one damaged value": damaged_weight,
    "the epsilon of one norm": epsilon_of(0),
    "cosines shifted by a position": shifted_cos,
    "queries shifted by a position": shifted_queries,
    "a hole in the mask": hole_in_the_mask,
    "a skipped layer": skipped_layer,
}
