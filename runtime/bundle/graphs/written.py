"""The files of a bundle's graphs: written by the exporter, compared by every load.

In: a blueprint, and where the weights lie. Out: the content of each graph's file, the same to the
byte wherever it is made. So a graph that is loaded is one that `firp export` writes for the manifest
beside it, or it is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firp.runtime.bundle.graph_spec import GraphSpec, graph_specs, layers_of
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.halves import DRAFT_TOKENS, lower, upper
from firp.runtime.bundle.graphs.onnx_file import StoredWeight, onnx_file
from firp.runtime.bundle.graphs.predictors import predictors
from firp.runtime.bundle.graphs.stored import Blueprint
from firp.runtime.bundle.graphs.tape import Value
from firp.runtime.bundle.weight_table import DRAFT_HEAD
from firp.runtime.errors import BundleError


class GraphFile(NamedTuple):
    """The file of one graph."""

    spec: GraphSpec
    content: bytes


def graph_files(
    blueprint: Blueprint,
    weights: Mapping[str, StoredWeight],
    contract: str,
    draft_tokens: np.ndarray | None,
) -> Iterator[GraphFile]:
    """Every graph with a cache of this contract, and the predictors. draft_tokens: see `upper`."""
    model, layer, num_predictors, precision, quantization = blueprint
    formats = quantization.formats if quantization else {}
    specs = graph_specs(model, layer, num_predictors, precision, contract)
    for name, spec in specs.items():
        used = _UsedWeights(weights)
        builder = GraphBuilder(model, precision.compute, used, formats)
        inputs = {tensor.name: Value(tensor.name) for tensor in spec.inputs}
        layers = layers_of(name, model, layer)
        if name == "predictors":
            outputs = predictors(builder, inputs)
        elif name == "lower":
            outputs = lower(builder, inputs, layers, spec)
        else:
            outputs = upper(builder, inputs, layers, spec, draft_tokens)
        for tensor in spec.outputs:
            outputs[tensor.name].name = tensor.name
        yield GraphFile(spec, onnx_file(spec, builder.tape, used.places))


def check_graphs(
    folder: Path, blueprint: Blueprint, weights: Mapping[str, StoredWeight], contract: str
) -> None:
    """Compare the graphs in a bundle's folder with what they must be. Raises BundleError."""
    head = weights.get(f"{DRAFT_HEAD}.weight")
    count = head and sum(head.shape) - blueprint.model.hidden_size
    tokens = np.zeros(count, np.int64) if count else None
    for spec, content in graph_files(blueprint, weights, contract, tokens):
        file = folder / spec.file
        wanted = bytearray(content)
        with file.open("rb") as opened:
            found = opened.read(len(wanted) + 1)
        if count and spec.name == "upper" and len(found) == len(wanted):
            _take_tokens(wanted, found, count, blueprint.model.vocab_size, file)
        if found != wanted:
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found))
            raise BundleError(
                "not the graph that firp export writes for this manifest",
                got=f"'{file}' differs from byte {min(at, len(wanted))} on",
                fix="export the model again",
            )


def _take_tokens(wanted: bytearray, found: bytes, count: int, vocab_size: int, file: Path) -> None:
    """Put the tokens that the file lists into what it must be: they are the exporter's to choose.
    Raises BundleError for a list that is none.
    """
    size = 8 * count
    at = wanted.index(bytes(size), wanted.index(DRAFT_TOKENS.encode() + b"J"))
    tokens = np.frombuffer(found, "<i8", count, at)
    if not (tokens[0] >= 0 and tokens[-1] < vocab_size and (np.diff(tokens) > 0).all()):
        raise BundleError(
            "bad draft tokens in a graph",
            got=f"'{file}', {tokens.min()} to {tokens.max()}",
            expected=f"ascending ids in [0, {vocab_size})",
            fix="export the model again",
        )
    wanted[at : at + size] = found[at : at + size]


class _UsedWeights:
    """Weights of one graph, each listed when the graph first asks for it."""

    def __init__(self, weights: Mapping[str, StoredWeight]):
        self._weights = weights
        self._values: dict[str, Value] = {}
        self.places: dict[str, StoredWeight] = {}  # where those that are used lie, in the order of their use

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Value:
        if name not in self._values:
            self._use(name, self._weights[name])
        return self._values[name]

    def stacked(self, name: str, parts: Sequence[str]) -> Value:
        if name in self._values:
            return self._values[name]
        places = [self._weights[part] for part in parts]
        first = places[0]
        nbytes = first.nbytes
        if any(place.offset != first.offset + index * nbytes for index, place in enumerate(places)):
            got = f"{parts[0]} and others apart from each other in '{first.file}'"
            raise BundleError("weights of an older bundle", got=got, fix="export the model again")
        self._use(name, first._replace(shape=(len(parts), *first.shape), nbytes=nbytes * len(parts)))
        return self._values[name]

    def _use(self, name: str, place: StoredWeight) -> None:
        self._values[name] = Value(name, place.shape)
        self.places[name] = place
