"""One batch's buffers, and the passes that run on them: token ids in, guesses and logits out.

In: a manifest, its loaded graphs, the memory that they reach. Out: `Pass`, on the host. Everything
else stays where it is: hidden rows, masks, keys and values, the logits that nobody reads. A session
belongs to one caller; its graphs are shared.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.backends.interface import Array, Binding, Graph, Memory
from firp.runtime.bundle.dtypes import DTYPES, to_float32
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import cache_names
from firp.runtime.errors import FirpError, SessionBusyError
from firp.runtime.passes.kv_cache import KVBuffer
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.layout import layout
from firp.runtime.trees.tree import DraftTree

MAX_BINDINGS = 256  # kept for passes to come, with what a runner prepared for them


class Pass(NamedTuple):
    """What one pass through the graphs left behind, on the host; views, valid until the next pass."""

    logits: np.ndarray | None  # [G', V] f32 of the decoded tree rows; None where nobody asked
    top_ids: np.ndarray  # [G, k] i64, those of pseudo rows last
    top_logprobs: np.ndarray  # [G, k] f32


class Session:
    """Buffers for one sequence. `capacity`: tokens that it may cache, prompt included; `rows`: the
    most rows of one pass, pseudo rows included; `decoded_rows`: the most of them that are decoded
    to logits. A pass that does not fit is an error.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: dict[str, Graph],
        memory: Memory,
        capacity: int,
        rows: int,
        decoded_rows: int,
    ):
        self.manifest, self.model, self.memory = manifest, manifest.model, memory
        self._runners = {name: graph.runner(memory) for name, graph in graphs.items()}
        self._slabs = {graph: _slab_names(manifest.layers(graph)) for graph in ("lower", "upper")}
        self._lock = threading.Lock()
        model, dtype, zeros = self.model, DTYPES[manifest.precision.compute].storage, memory.zeros
        self.rows, self.decoded_rows = rows, decoded_rows
        top_k = graphs["upper"].spec.output("top_ids").shape[-1]
        self.kv = KVBuffer(
            memory,
            model.num_hidden_layers,
            capacity,
            rows,
            1,
            model.attention.num_key_value_heads,
            model.attention.head_dim,
            DTYPES[manifest.precision.cache].storage,
        )
        self._hidden = {  # [rows, D] each
            name: zeros((1 if name == "source" else rows, model.hidden_size), dtype, "hidden states")
            # packed: extended, less the offsets that are not used
            for name in ("lower", "extended", "packed", "source")
        }
        self._bias = zeros((rows * (capacity + rows),), dtype, "attention mask")
        self._logits = zeros((self.decoded_rows, model.vocab_size), np.float32, "logits")
        self._top_ids = zeros((self.decoded_rows, top_k), np.int64, "guesses")
        self._top_logprobs = zeros((self.decoded_rows, top_k), np.float32, "guesses")
        self._indices = {
            name: zeros((rows,), np.int64, "indices")
            for name in ("input_ids", "position_ids", "source_rows", "logits_rows")
        }
        self._bindings: dict[tuple, Binding] = {}
        self._marks: list[tuple[str, Any, Any]] = []
        self.spent_ms = dict.fromkeys((*graphs, "copies"), 0.0)  # by everything that has been waited for

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the session for one caller; a second one gets a SessionBusyError and the cache stays
        whole.
        """
        if not self._lock.acquire(blocking=False):
            raise SessionBusyError(
                "session in use",
                got="a second caller",
                expected="one at a time",
                fix="give each thread its own session",
            )
        self._marks.clear()  # of a caller that left early
        try:
            yield
        finally:
            self._lock.release()

    def forward(
        self,
        tree: DraftTree,
        sources: list[int],
        offsets: int | None = None,
        logits_rows: list[int] | None = None,
        logits: bool = True,
        repeats: bool = True,
    ) -> Pass:
        """One pass over a tree (or a chain of prompt tokens), and over the pseudo rows of its
        sources, after the cached tokens.

        offsets: pseudo rows of each source, all K by default; logits_rows: the tree rows to decode,
        all by default; the pseudo rows are always decoded, after them; logits: whether to bring the
        logits of those tree rows to the host; repeats: whether passes of this size are to be
        expected again, as those of a prompt's pieces are not.
        """
        rows, k = len(tree.tokens), self.manifest.num_predictors
        offsets = offsets or k
        decoded = np.array(
            [
                *(range(rows) if logits_rows is None else logits_rows),
                *range(rows, rows + len(sources) * offsets),
            ]
        )
        if rows + len(sources) * k > self.rows or len(decoded) > self.decoded_rows:
            got = f"{rows + len(sources) * k} rows, {len(decoded)} decoded"
            raise FirpError(
                "pass larger than the session",
                got=got,
                expected=f"at most {self.rows}, {self.decoded_rows} decoded",
            )
        visible, depths = layout(tree.parents, tree.depths, sources, offsets)
        with self._timed("copies"):
            self._write("input_ids", np.array(tree.tokens, np.int64))
            positions = self._write_positions(depths + self.kv.length)
            self._write("logits_rows", decoded)
            self._write_bias(visible[:rows, :rows], positions[:rows])
        self._run("lower", repeats, "lower", rows)
        hidden = "lower"
        if sources:
            hidden = "extended"
            self._predict("lower", rows, sources, repeats)
            with self._timed("copies"):
                if offsets < k:
                    hidden = self._pack(rows, len(sources), offsets)
                self._write_bias(visible, positions)
        self._run("upper", repeats, hidden, len(depths), len(decoded))
        return self._read(len(decoded), len(decoded) - len(sources) * offsets if logits else 0)

    def draft(self, row: int, offsets: int) -> Guesses:
        """A draft pass: the pseudo rows of one row of the last pass, the one committed last,
        through the upper half alone.
        """
        with self._timed("copies"):
            self.memory.move_rows(_batch(self._hidden["lower"]), [row], _batch(self._hidden["source"]), 0)
            # that of the row is the last cached token's
            positions = self._write_positions(np.arange(offsets) + self.kv.length)
            self._write("logits_rows", np.arange(offsets))
            self._write_bias(np.tri(offsets, dtype=bool), positions)
        self._predict("source", 1, [0], repeats=True)
        with self._timed("copies"):  # the pseudo rows alone
            extended, packed = _batch(self._hidden["extended"]), _batch(self._hidden["packed"])
            self.memory.move_rows(extended, range(1, 1 + offsets), packed, 0)
        self._run("upper", True, "packed", offsets, offsets)
        result = self._read(offsets, 0)
        return Guesses(result.top_ids, result.top_logprobs)

    def hidden_states(self, rows: int) -> np.ndarray:
        """[rows, D] f32: the first rows of the last pass at the prediction layer."""
        return to_float32(self.memory.read(self._hidden["lower"][:rows])[0])

    def _predict(self, source: str, rows: int, sources: list[int], repeats: bool) -> None:
        """Extend the first `rows` hidden states of a buffer by all pseudo rows of each source, in
        the buffer "extended".
        """
        self._write("source_rows", np.array(sources, np.int64))
        with self._timed("predictors"):
            self._runners["predictors"].run(
                self._binding(("predictors", source, rows, len(sources)), repeats)
            )

    def _pack(self, rows: int, sources: int, offsets: int) -> str:
        """Close the gaps that offsets beyond the first ones leave. Returns the buffer that holds
        the rows then.
        """
        k, extended, packed = self.manifest.num_predictors, self._hidden["extended"], self._hidden["packed"]
        self.memory.move_rows(_batch(extended[:rows]), range(rows), _batch(packed[:rows]), 0)
        pseudo = extended[rows : rows + sources * k].reshape(sources, k, -1)
        target = packed[rows : rows + sources * offsets].reshape(sources, offsets, -1)
        self.memory.move_rows(pseudo, range(offsets), target, 0)
        return "packed"

    def _run(self, graph: str, repeats: bool, *sizes) -> None:
        """Run one half of the model on views of the cache."""
        with self._timed(graph):
            self._runners[graph].run(self._binding((graph, self.kv.slots_in_view, *sizes), repeats))

    def _binding(self, key: tuple, repeats: bool) -> Binding:
        """The arrays of a run; the key says everything that they depend on."""
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bind_predictors(*key[1:]) if key[0] == "predictors" else self._bind_half(*key)
            if repeats and self.memory.reuses_bindings and len(self._bindings) < MAX_BINDINGS:
                binding.repeats = True
                self._bindings[key] = binding
        return binding

    def _bind_predictors(self, source: str, rows: int, count: int) -> Binding:
        out = self._hidden["extended"][: rows + count * self.manifest.num_predictors]
        inputs = {
            "hidden_states": _batch(self._hidden[source][:rows]),
            "source_rows": _batch(self._indices["source_rows"][:count]),
        }
        return Binding(inputs, {"hidden_states_out": _batch(out)})

    def _bind_half(self, graph: str, slots: int, hidden: str, rows: int, decoded: int = 0) -> Binding:
        """hidden: the buffer of hidden states."""
        states = _batch(self._hidden[hidden][:rows])
        keys = slots + rows
        inputs = {
            "position_ids": _batch(self._indices["position_ids"][:rows]),
            "attention_bias": self._bias[: rows * keys].reshape(1, 1, rows, keys),
        }
        outputs: dict[str, Array] = {}
        if graph == "lower":
            inputs["input_ids"], outputs["hidden_states"] = _batch(self._indices["input_ids"][:rows]), states
        else:
            inputs |= {"hidden_states": states, "logits_rows": _batch(self._indices["logits_rows"][:decoded])}
            outputs["logits"], outputs["top_ids"] = (
                _batch(self._logits[:decoded]),
                _batch(self._top_ids[:decoded]),
            )
            outputs["top_logprobs"] = _batch(self._top_logprobs[:decoded])
        for past, new, slab in self._slabs[graph]:
            inputs[past] = self.kv.past(slab, slots)
            outputs[new] = self.kv.new(slab, rows)
        return Binding(inputs, outputs)

    def _write(self, name: str, values: np.ndarray) -> None:
        self.memory.write(self._indices[name][: len(values)], values)

    def _write_positions(self, positions: np.ndarray) -> np.ndarray:
        """Pseudo rows may guess past the context, where nothing is kept of them; the tables of
        positions end there.
        """
        positions = np.minimum(positions, self.model.max_position_embeddings - 1)  # [R]
        self._write("position_ids", positions)
        return positions

    def _write_bias(self, visible: np.ndarray, positions: np.ndarray) -> None:
        rows, keys = len(positions), self.kv.slots_in_view + len(positions)
        bias = self._bias[: rows * keys].reshape(1, 1, rows, keys)
        self.memory.write_bias(bias, visible, positions, self.kv.length, self.model.sliding_window)

    def commit(self, rows: list[int] | range) -> None:
        """Keep the keys and values of these rows of the last pass, in this order."""
        with self._timed("copies"):
            self.kv.commit(rows)

    def _read(self, decoded: int, with_logits: int) -> Pass:
        """Wait for the pass; the first `with_logits` rows of its logits."""
        wanted = [self._top_ids[:decoded], self._top_logprobs[:decoded]]
        if with_logits:
            wanted.append(self._logits[:with_logits])
        top_ids, top_logprobs, *logits = self.memory.read(*wanted)
        for name, start, end in self._marks:
            self.spent_ms[name] += self.memory.elapsed_ms(start, end)
        self._marks.clear()
        return Pass(logits[0] if logits else None, top_ids, top_logprobs)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = self.memory.now()
        yield
        self._marks.append((name, start, self.memory.now()))


def _batch(array: Array) -> Array:
    """[...] → [1, ...]: a batch of one sequence."""
    return array.reshape(1, *array.shape)


def _slab_names(layers: range) -> list[tuple[str, str, int]]:
    """Graph input, graph output and slab of the KV buffer, for the keys and values of each layer."""
    return [(names.past, names.new, slab) for slab, names in enumerate(cache_names(layers), 2 * layers.start)]
