"""Declarations of a bundle's graphs: inputs, outputs, and the layers that each one runs.

In: a ModelConfig, the prediction layer, the number of predictors, the precision. Out: one GraphSpec
a graph, the single declaration that exporter, manifest, backends, docs and tests read.

Shape letters: B batch, T rows of a pass, P cached tokens in view, W those in view of layers with a
window, S slots of a buffer, M draft sources, R = T + M*K, G rows decoded to logits, E pseudo rows
decoded to guesses.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.precision import Precision

TOP_K = 64  # guesses listed for each row: the path correction re-ranks them, so many more than a tree is wide
# What a graph and its caller agree on about keys and values, or about latent rows, which are both.
# "in place": one buffer a tensor goes in and comes out, [B, Hkv, S, Dh], bound to one address; the
# graph writes this pass's rows into its slots from `write_at` on, and copies nothing.
# "prefix": views of the cached slots go in, [P, B, Hkv, Dh], of layers with a window the last ones,
# [W, B, Hkv, Dh], and this pass's rows come out, [rows, B, Hkv, Dh].
IN_PLACE = "in place"
PREFIX = "prefix"
CACHE_CONTRACTS = (IN_PLACE, PREFIX)
_OUTPUT = {IN_PLACE: "present", PREFIX: "new"}
# inputs that say how to compute, not what with: shapes, which lie in host memory on every device
HEAD_INPUTS = ("query_shape", "bias_repeats", "bias_shape")
WINDOW_INPUTS = ("window_start", "window_stop")  # slots that layers with a window read, of all lanes
HOST_INPUTS = HEAD_INPUTS + WINDOW_INPUTS
_CACHE_NAME = re.compile(r"(past|present|new)_(?:key|value|latent)\.(\d+)\b")


class CacheNames(NamedTuple):
    """Graph input and output of one tensor that a layer caches."""

    past: str
    new: str


def cache_names(layers: Iterable[int], contract: str, cached: Iterable[str]) -> list[CacheNames]:
    """Names of cached tensors: for each layer those of `AttentionConfig.cached`."""
    return [
        CacheNames(f"past_{part}.{layer}", f"{_OUTPUT[contract]}_{part}.{layer}")
        for layer in layers
        for part in cached
    ]


def cached_layer(name: str) -> int | None:
    """The layer whose keys or values a tensor holds, past or new; None for any other tensor."""
    found = _CACHE_NAME.match(name)
    return int(found[2]) if found else None


def is_past(name: str) -> bool:
    """Tell whether a tensor holds cached keys or values."""
    found = _CACHE_NAME.match(name)
    return found is not None and found[1] == "past"


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: name, dtype and shape; a string dimension is dynamic and named by
    its shape letter.
    """

    name: str
    dtype: str
    shape: tuple[Any, ...]

    def sizes(self, letters: Mapping[str, int]) -> tuple[int, ...]:
        """The shape, with its letters and sums of letters, such as P+T, replaced."""
        return tuple(
            sum(letters[letter] for letter in size.split("+")) if isinstance(size, str) else size
            for size in self.shape
        )


@dataclass(frozen=True)
class GraphSpec:
    """A graph's inputs and outputs in order. Exporter, backends, docs and tests read this one
    declaration.
    """

    name: str
    cache: str | None  # one of CACHE_CONTRACTS; None where a graph has no keys and values
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        """Name of the graph's ONNX file in a bundle."""
        return f"{self.name}.prefix.onnx" if self.cache == PREFIX else f"{self.name}.onnx"

    def output(self, name: str) -> TensorSpec:
        """The declared output of that name."""
        return next(spec for spec in self.outputs if spec.name == name)

    @property
    def past(self) -> tuple[TensorSpec, ...]:
        """Inputs: the cached keys and values."""
        return tuple(spec for spec in self.inputs if is_past(spec.name))

    @property
    def new(self) -> tuple[TensorSpec, ...]:
        """Outputs: the keys and values of this pass."""
        return tuple(spec for spec in self.outputs if cached_layer(spec.name) is not None)


def layers_of(graph: str, config: ModelConfig, prediction_layer: int) -> range:
    """The layers that a graph runs."""
    halves = {
        "lower": range(prediction_layer),
        "upper": range(prediction_layer, config.num_hidden_layers),
    }
    return halves.get(graph, range(0))


def graph_specs(
    config: ModelConfig,
    prediction_layer: int,
    num_predictors: int,
    precision: Precision,
    contract: str = IN_PLACE,
) -> dict[str, GraphSpec]:
    """The declarations of all graphs that decode a bundle with `num_predictors` (none: no
    predictors graph), by the cache contract of one backend.
    """
    compute = precision.compute
    size = config.hidden_size
    past, new, masks, positions = {}, {}, {}, {}
    for graph, rows in (("lower", "T"), ("upper", "R")):
        layers = layers_of(graph, config, prediction_layer)
        names = cache_names(layers, contract, config.attention.cached)
        masks[graph] = config.masks(layers)
        read = config.reads_positions(layers)
        positions[graph] = [TensorSpec("position_ids", "int64", ("B", rows))] if read else []
        windows = (config.layers[cached_layer(name.past)].window for name in names)
        before = [_cache_shape(config, contract, _slots(window)) for window in windows]
        past[graph] = [
            TensorSpec(name.past, precision.cache, shape) for name, shape in zip(names, before, strict=True)
        ]
        after = _cache_shape(config, contract, rows)
        new[graph] = [TensorSpec(name.new, precision.cache, after) for name in names]
    listed = min(TOP_K, config.vocab_size)
    draft_rows, guesses = [], []
    if num_predictors:
        draft_rows = [TensorSpec("draft_rows", "int64", ("B", "E"))]
        guesses = [
            TensorSpec("draft_ids", "int64", ("B", "E", listed)),
            TensorSpec("draft_logprobs", "float32", ("B", "E", listed)),
        ]
    specs = {
        "lower": GraphSpec(
            "lower",
            contract,
            (
                TensorSpec("input_ids", "int64", ("B", "T")),
                *positions["lower"],
                *_attention_inputs("T", compute, contract, masks["lower"]),
                *past["lower"],
            ),
            (TensorSpec("hidden_states", compute, ("B", "T", size)), *new["lower"]),
        ),
        "predictors": GraphSpec(
            "predictors",
            None,
            (
                TensorSpec("hidden_states", compute, ("B", "T", size)),
                TensorSpec("source_rows", "int64", ("B", "M")),
            ),
            (TensorSpec("hidden_states_out", compute, ("B", "R", size)),),
        ),
        "upper": GraphSpec(
            "upper",
            contract,
            (
                TensorSpec("hidden_states", compute, ("B", "R", size)),
                *positions["upper"],
                *_attention_inputs("R", compute, contract, masks["upper"]),
                TensorSpec("logits_rows", "int64", ("B", "G")),
                *draft_rows,
                *past["upper"],
            ),
            (
                TensorSpec("logits", "float32", ("B", "G", config.vocab_size)),
                TensorSpec("top_ids", "int64", ("B", "G", listed)),
                TensorSpec("top_logprobs", "float32", ("B", "G", listed)),
                *guesses,
                *new["upper"],
            ),
        ),
    }
    if not num_predictors:
        del specs["predictors"]
    return specs


def _slots(window: int | None) -> str:
    """The letter of cached slots that a layer reads by the prefix contract."""
    return "P" if window is None else "W"


def _cache_shape(config: ModelConfig, contract: str, slots: str) -> tuple[Any, ...]:
    """slots: the letter of the prefix contract; a buffer has S of them before and after a pass."""
    heads, size = config.attention.num_key_value_heads, config.attention.head_dim
    return ("B", heads, "S", size) if contract == IN_PLACE else (slots, "B", heads, size)


def _attention_inputs(
    rows: str, dtype: str, contract: str, masks: Mapping[str, int | None]
) -> list[TensorSpec]:
    columns = {
        name: f"{_slots(window)}+{rows}" if contract == PREFIX else "S" for name, window in masks.items()
    }
    biases = [TensorSpec(name, dtype, ("B", 1, rows, columns[name])) for name in sorted(masks)]
    if contract == PREFIX:
        return biases
    return [
        *biases,
        TensorSpec("write_at", "int64", ("B",)),  # slot of the first row
        # how Attention sees queries [B, H, T, Dh] and the mask: as they are, or every row as a head of
        # its own, [B, H*T, 1, Dh] and [B, H*T, 1, S] (`firp.runtime.passes.buffers.head_inputs`)
        *(TensorSpec(name, "int64", (4,)) for name in HEAD_INPUTS),
        *(TensorSpec(name, "int64", (1,)) for name in WINDOW_INPUTS if any(masks.values())),
    ]
