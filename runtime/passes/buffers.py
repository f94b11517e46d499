"""The arrays of a batch, and which of them each run of a graph reads and writes.

In: a manifest, the contract of its caches, the memory that its graphs reach, the largest pass. Out:
arrays, and a `Binding` for every size of run. Bindings whose sizes come again are kept.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np

from firp.runtime.backends.interface import Array, Binding, Memory
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import HEAD_INPUTS, IN_PLACE, WINDOW_INPUTS, cache_names, cached_layer
from firp.runtime.bundle.model_config import AttentionConfig, ModelConfig
from firp.runtime.passes.cache_view import Seen
from firp.runtime.passes.in_place_cache import STEP
from firp.runtime.passes.kv_cache import make_cache, size_for
from firp.runtime.passes.pass_shape import BatchSize

MAX_BINDINGS = 256  # kept for passes to come, with what a runner prepared for them
INDICES = ("input_ids", "position_ids", "source_rows", "logits_rows", "draft_rows", "write_at")


class Hidden(Enum):
    """A buffer of hidden states at the prediction layer."""

    LOWER = "what the lower half gave"
    EXTENDED = "the same, then all K pseudo rows of each source"
    PACKED = "the same, less the offsets that are not used"
    SOURCE = "one row, for a draft pass"


ONE = range(1)  # the place of a session that is alone


class HalfKey(NamedTuple):
    """Everything that the arrays of one run of a half depend on. Counts are those of one lane."""

    graph: str
    seen: tuple[Seen, ...]  # by the masks of the half, in the order of `Buffers.masks`
    hidden: Hidden
    rows: int
    decoded: int = 0  # rows decoded to logits
    drafts: int = 0  # pseudo rows decoded to guesses
    by_row: bool = True  # see `head_inputs`
    places: range = ONE  # of the cache


class PredictorsKey(NamedTuple):
    """Everything that the arrays of one run of the predictors depend on. Counts are those of one
    lane.
    """

    hidden: Hidden
    rows: int
    sources: int
    lanes: int = 1


class Buffers:
    """Arrays of a batch. top_k: guesses that the graphs list for each row."""

    def __init__(self, manifest: Manifest, contract: str, memory: Memory, size: BatchSize, top_k: int):
        model = manifest.model
        precision = manifest.precision
        zeros = memory.zeros
        dtype = DTYPES[precision.compute].storage
        self.num_predictors = manifest.num_predictors
        self.memory = memory
        capacity, rows, decoded_rows, lanes, _ = size
        self.kv = make_cache(contract, memory, size_for(manifest, size))
        self._slabs = {graph: _slabs(model, manifest.layers(graph), contract) for graph in ("lower", "upper")}
        self._heads = head_inputs(model.attention) if contract == IN_PLACE else {}
        # slots that layers with a window read, where their graphs attend to a part of a buffer
        self.window = {name: np.zeros(1, np.int64) for name in WINDOW_INPUTS if contract == IN_PLACE}
        self.hidden: dict[Hidden, Array] = {  # [rows, D] each
            name: zeros((1 if name is Hidden.SOURCE else rows, model.hidden_size), dtype, "hidden states")
            for name in Hidden
        }
        layers = {graph: manifest.layers(graph) for graph in ("lower", "upper")}
        self._positions = {graph: model.reads_positions(some) for graph, some in layers.items()}
        # of each half: the masks that it reads, and their windows
        self.masks = {graph: model.masks(some) for graph, some in layers.items()}
        self._biases = {
            name: zeros((rows * (capacity + rows + STEP),), dtype, "attention mask")
            for name in sorted({name for names in self.masks.values() for name in names})
        }
        self.accepted = zeros((lanes, model.hidden_size), dtype, "hidden states")  # of each lane's last row
        self.logits = zeros((decoded_rows, model.vocab_size), np.float32, "logits")
        self.top_ids = zeros((decoded_rows, top_k), np.int64, "guesses")
        self.top_logprobs = zeros((decoded_rows, top_k), np.float32, "guesses")
        self.draft_ids = zeros((decoded_rows, top_k), np.int64, "guesses")
        self.draft_logprobs = zeros((decoded_rows, top_k), np.float32, "guesses")
        self.indices: dict[str, Array] = {name: zeros((rows,), np.int64, "indices") for name in INDICES}
        self._bindings: dict[HalfKey | PredictorsKey, Binding] = {}
        self._slots = range(0)  # in view of the kept bindings, where buffers grow

    @property
    def kept_bindings(self) -> int:
        """Number of bindings that are kept."""
        return len(self._bindings)

    def bias(self, name: str, lanes: int, rows: int, columns: int) -> Array:
        """An additive mask of a pass, [lanes, rows, columns], a view."""
        return self._biases[name][: lanes * rows * columns].reshape(lanes, rows, columns)

    def batched(self, array: Array, lanes: int, rows: int) -> Array:
        """The rows of a pass, [lanes, rows, ...], a view of the first rows of an array [n, ...]."""
        return array[: lanes * rows].reshape(lanes, rows, *array.shape[1:])

    def slabs(self, graph: str) -> range:
        """The slabs that a graph writes."""
        slabs = self._slabs[graph]
        return range(min(slabs), max(slabs) + 1)

    def binding(self, key: HalfKey | PredictorsKey, recurs: bool) -> Binding:
        """The arrays of a run."""
        half = isinstance(key, HalfKey)
        if half and self._heads and key.seen[0].slots != self._slots:  # the buffers have grown
            self._slots = key.seen[0].slots
            self._bindings = {
                kept: b for kept, b in self._bindings.items() if isinstance(kept, PredictorsKey)
            }
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bind_half(key) if half else self._bind_predictors(key)
            if recurs and len(self._bindings) < MAX_BINDINGS:
                binding.repeats = True
                self._bindings[key] = binding
        return binding

    def _bind_predictors(self, key: PredictorsKey) -> Binding:
        lanes = key.lanes
        extended = key.rows + key.sources * self.num_predictors
        inputs = {
            "hidden_states": self.batched(self.hidden[key.hidden], lanes, key.rows),
            "source_rows": self.batched(self.indices["source_rows"], lanes, key.sources),
        }
        outputs = {"hidden_states_out": self.batched(self.hidden[Hidden.EXTENDED], lanes, extended)}
        return Binding(inputs, outputs)

    def _bind_half(self, key: HalfKey) -> Binding:
        lanes = len(key.places)

        def rows_of(array: Array, rows: int) -> Array:
            return self.batched(array, lanes, rows)

        states = rows_of(self.hidden[key.hidden], key.rows)
        inputs = {}
        if self._positions[key.graph]:
            inputs["position_ids"] = rows_of(self.indices["position_ids"], key.rows)
        seen = dict(zip(self.masks[key.graph], key.seen, strict=True))
        for name, (_, columns) in seen.items():
            bias = self.bias(name, lanes, key.rows, columns)
            inputs[name] = bias.reshape(lanes, 1, key.rows, columns)
        if self._heads:
            inputs["write_at"] = self.indices["write_at"][:lanes]
            inputs |= self._heads[key.by_row]
            inputs |= self.window if any(self.masks[key.graph].values()) else {}
        outputs: dict[str, Array] = {}
        if key.graph == "lower":
            inputs["input_ids"] = rows_of(self.indices["input_ids"], key.rows)
            outputs["hidden_states"] = states
        else:
            inputs["hidden_states"] = states
            inputs["logits_rows"] = rows_of(self.indices["logits_rows"], key.decoded)
            for name in ("logits", "top_ids", "top_logprobs"):
                outputs[name] = rows_of(getattr(self, name), key.decoded)
            if self.num_predictors:
                inputs["draft_rows"] = rows_of(self.indices["draft_rows"], key.drafts)
                for name in ("draft_ids", "draft_logprobs"):
                    outputs[name] = rows_of(getattr(self, name), key.drafts)
        for slab, (past, new, mask) in self._slabs[key.graph].items():
            inputs[past], outputs[new] = self.kv.arrays(slab, key.places, seen[mask].slots, key.rows)
        return Binding(inputs, outputs)


class _Slab(NamedTuple):
    """Graph input and output of a tensor that a layer caches, and the mask that the layer reads."""

    past: str
    new: str
    mask: str


def _slabs(model: ModelConfig, layers: range, contract: str) -> dict[int, _Slab]:
    """All tensors that the layers cache, by slab."""
    cached = model.attention.cached
    names = cache_names(layers, contract, cached)
    return {
        slab: _Slab(*name, model.mask(cached_layer(name.past)))
        for slab, name in enumerate(names, len(cached) * layers.start)
    }


def head_inputs(attention: AttentionConfig) -> dict[bool, dict[str, np.ndarray]]:
    """How Attention sees queries: as they are, or (True) every row as a head of its own. A row is then
    computed by the kernel of a single row, whatever else rides in its pass: plain and drafted decoding
    get the same bits, and up to some 8 rows it is faster too, for nothing is packed.
    """
    heads, size = attention.num_heads, attention.head_dim
    return {
        by_row: {name: np.array(values, np.int64) for name, values in zip(HEAD_INPUTS, inputs, strict=True)}
        for by_row, inputs in {
            False: ([0, heads, -1, size], [1, 1, 1, 1], [0, 0, 0, 0]),
            True: ([0, -1, 1, size], [1, heads, 1, 1], [0, -1, 1, 0]),
        }.items()
    }
