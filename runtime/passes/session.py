"""Passes of one sequence: token ids in, guesses and logits out.

In: a manifest, its loaded graphs, the memory that they reach. Out: `Pass`, on the host. Everything
else stays where it is: hidden rows, masks, keys and values, the logits that nobody reads. A session
belongs to one caller; its graphs are shared.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np

from firp.runtime.backends.interface import Graph, Memory
from firp.runtime.bundle.dtypes import to_float32
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import IN_PLACE
from firp.runtime.errors import FirpError, SessionBusyError
from firp.runtime.passes.buffers import Buffers, HalfKey, Hidden, PredictorsKey, batch_of_one
from firp.runtime.passes.pass_plan import BY_ROW, PREFILL_ROWS, Pass, PassPlan
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.layout import layout

COPIES = "copies"  # of masks, indices and accepted rows, among the times by graph name


class Session:
    """Buffers for one sequence. `capacity`: tokens that it may cache, prompt included; `rows`: the
    most rows of one pass, pseudo rows included; `decoded_rows`: the most of them that are decoded
    to logits, or to guesses. A pass that does not fit is an error.
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
        self.manifest = manifest
        self.model = manifest.model
        self._masks = manifest.model.masks(range(manifest.model.num_hidden_layers))
        self.memory = memory
        self.rows = rows
        self.decoded_rows = decoded_rows
        self.prefill_rows = min(PREFILL_ROWS, rows - manifest.num_predictors)
        self._runners = {name: graph.runner(memory) for name, graph in graphs.items()}
        upper = graphs["upper"].spec
        top_k = upper.output("top_ids").shape[-1]
        self.buffers = Buffers(manifest, upper.cache, memory, capacity, rows, decoded_rows, top_k)
        self.kv = self.buffers.kv
        self._no_rows = () if upper.cache == IN_PLACE else (0,)
        self.tokens: list[int] = []  # whose keys and values the cache holds, as far as passes put them there
        self._pass_tokens: list[int] = []  # of the last pass
        self._lock = threading.Lock()
        self._marks: list[tuple[str, Any, Any]] = []
        # milliseconds by graph name, and of copies, of everything that has been waited for
        self.spent_ms = dict.fromkeys((*graphs, COPIES), 0.0)

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

    def forward(self, plan: PassPlan) -> Pass:
        """One pass after the cached tokens. Raises FirpError when it does not fit the session."""
        tree = plan.tree
        sources = plan.sources
        offsets = plan.offsets
        rows = len(tree.tokens)
        k = self.manifest.num_predictors
        drafts = len(sources) * offsets
        decoded = max(len(plan.decoded), drafts)
        if rows + len(sources) * k > self.rows or decoded > self.decoded_rows:
            raise FirpError(
                "pass larger than the session",
                got=f"{rows + len(sources) * k} rows, {decoded} decoded",
                expected=f"at most {self.rows}, {self.decoded_rows} decoded",
            )
        visible, depths = layout(tree.parents, tree.depths, list(sources), offsets)
        self._pass_tokens = tree.tokens
        with self._timed(COPIES):
            self._reserve(len(depths))
            self._write("input_ids", np.array(tree.tokens, np.int64))
            positions = self._write_positions(depths + self.kv.length)
            counts = self._write_decoded(plan.decoded, range(rows, rows + drafts))
            self._write_bias(visible[:rows, :rows], positions[:rows])
        by_row = self._by_row(plan)
        self._run_half("lower", Hidden.LOWER, rows, (0, 0), by_row, not plan.prompt)
        hidden = Hidden.LOWER
        if sources:
            hidden = Hidden.EXTENDED
            self._predict(Hidden.LOWER, rows, sources, not plan.prompt)
            with self._timed(COPIES):
                if offsets < k:
                    hidden = self._pack(rows, len(sources), offsets)
                self._write_bias(visible, positions)
        self._run_half("upper", hidden, len(depths), counts, by_row, not plan.prompt)
        return self._read(plan, drafts)

    def draft(self, row: int, offsets: int) -> Guesses:
        """A draft pass: the pseudo rows of one row of the last pass, the one committed last,
        through the upper half alone.
        """
        hidden = self.buffers.hidden
        with self._timed(COPIES):
            source = batch_of_one(hidden[Hidden.SOURCE])
            self.memory.move_rows(batch_of_one(hidden[Hidden.LOWER]), [row], source, 0)
            self._reserve(offsets)
            # the row's own position is that of the last cached token
            positions = self._write_positions(np.arange(offsets) + self.kv.length)
            counts = self._write_decoded((), range(offsets))
            self._write_bias(np.tri(offsets, dtype=bool), positions)
        self._predict(Hidden.SOURCE, 1, (0,), recurs=True)
        with self._timed(COPIES):  # the pseudo rows alone
            extended = batch_of_one(hidden[Hidden.EXTENDED])
            packed = batch_of_one(hidden[Hidden.PACKED])
            self.memory.move_rows(extended, range(1, 1 + offsets), packed, 0)
        self._run_half("upper", Hidden.PACKED, offsets, counts, by_row=True, recurs=True)
        buffers = self.buffers
        return Guesses(*self._wait(buffers.draft_ids[:offsets], buffers.draft_logprobs[:offsets]))

    def commit(self, rows: list[int] | range) -> None:
        """Keep the keys and values of these rows of the last pass, in this order."""
        with self._timed(COPIES):
            self.kv.commit(rows)
        self.tokens += [self._pass_tokens[row] for row in rows]

    def rewind(self, length: int) -> None:
        """Keep the first `length` cached tokens, and forget the others."""
        self.kv.rewind(length)
        del self.tokens[length:]

    def known_prefix(self, prompt: Sequence[int]) -> int:
        """Count the first tokens of a prompt that are in the cache already; never all of them,
        since its last row has to be computed.
        """
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def hidden_states(self, rows: int) -> np.ndarray:
        """[rows, D] f32: the first rows of the last pass at the prediction layer."""
        return to_float32(self.memory.read(self.buffers.hidden[Hidden.LOWER][:rows])[0])

    def _predict(self, hidden: Hidden, rows: int, sources: tuple[int, ...], recurs: bool) -> None:
        """Extend the first `rows` hidden states by all pseudo rows of each source."""
        self._write("source_rows", np.array(sources, np.int64))
        binding = self.buffers.binding(PredictorsKey(hidden, rows, len(sources)), recurs)
        with self._timed("predictors"):
            self._runners["predictors"].run(binding)

    def _pack(self, rows: int, sources: int, offsets: int) -> Hidden:
        """Close the gaps that offsets beyond the first ones leave."""
        k = self.manifest.num_predictors
        hidden = self.buffers.hidden
        extended, packed = hidden[Hidden.EXTENDED], hidden[Hidden.PACKED]
        self.memory.move_rows(batch_of_one(extended[:rows]), range(rows), batch_of_one(packed[:rows]), 0)
        pseudo = extended[rows : rows + sources * k].reshape(sources, k, -1)
        target = packed[rows : rows + sources * offsets].reshape(sources, offsets, -1)
        self.memory.move_rows(pseudo, range(offsets), target, 0)
        return Hidden.PACKED

    def _run_half(
        self, graph: str, hidden: Hidden, rows: int, counts: tuple[int, int], by_row: bool, recurs: bool
    ) -> None:
        """Run one half of the model on views of the cache. counts: of rows that are decoded, see
        `_write_decoded`.
        """
        view = self.kv.view(rows)
        with self._timed(COPIES):
            self.kv.begin(self.buffers.slabs(graph), rows)
        with self._timed(graph):
            key = HalfKey(graph, view.slots, view.columns, hidden, rows, *counts, by_row)
            self._runners[graph].run(self.buffers.binding(key, recurs))

    def _by_row(self, plan: PassPlan) -> bool:
        """Whether the rows of a pass attend one by one. It must not depend on its pseudo rows: the
        others would have other bits with them than without.
        """
        rows = len(plan.tree.tokens)
        if plan.prompt:
            return rows == 1
        return rows <= BY_ROW or self.manifest.quantization is not None

    def _reserve(self, rows: int) -> None:
        """Make room in the cache for the rows of a pass."""
        self.kv.reserve(rows)
        self._write("write_at", np.array([self.kv.length]))

    def _write_decoded(self, logits_rows: Sequence[int], draft_rows: Sequence[int]) -> tuple[int, int]:
        """Write the rows that are decoded to logits, and those decoded to guesses; return how many
        there are of each. Where a graph takes no empty list, the first row stands in for it.
        """
        counts = []
        for name, rows in (("logits_rows", logits_rows), ("draft_rows", draft_rows)):
            some = rows or self._no_rows
            self._write(name, np.array(some, np.int64))
            counts.append(len(some))
        return counts[0], counts[1]

    def _write(self, name: str, values: np.ndarray) -> None:
        self.memory.write(self.buffers.indices[name][: len(values)], values)

    def _write_positions(self, positions: np.ndarray) -> np.ndarray:
        """Write the rows' positions. Pseudo rows may guess past the context, where nothing is kept
        of them; the tables of positions end there.
        """
        positions = np.minimum(positions, self.model.max_position_embeddings - 1)  # [R]
        self._write("position_ids", positions)
        return positions

    def _write_bias(self, visible: np.ndarray, positions: np.ndarray) -> None:
        view = self.kv.view(len(positions))
        for name, window in self._masks.items():
            bias = self.buffers.bias(name, len(positions), view.columns)
            self.memory.write_bias(bias, visible, positions, self.kv.length, view.first, window)

    def _read(self, plan: PassPlan, drafts: int) -> Pass:
        """Wait for the pass, and bring what was asked for."""
        buffers = self.buffers
        decoded = len(plan.decoded)
        wanted = [buffers.top_ids[:decoded], buffers.top_logprobs[:decoded]]
        if drafts:
            wanted += [buffers.draft_ids[:drafts], buffers.draft_logprobs[:drafts]]
        if plan.bring_logits:
            wanted.append(buffers.logits[:decoded])
        found = self._wait(*wanted)
        guesses = Guesses(found[2], found[3]) if drafts else None
        logits = found[-1] if plan.bring_logits else None
        return Pass(logits, found[0], found[1], guesses, plan.sources, plan.offsets)

    def _wait(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        """Wait for everything asked for so far, and settle its times."""
        found = self.memory.read(*arrays)
        for name, start, end in self._marks:
            self.spent_ms[name] += self.memory.elapsed_ms(start, end)
        self._marks.clear()
        return found

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = self.memory.now()
        yield
        self._marks.append((name, start, self.memory.now()))
