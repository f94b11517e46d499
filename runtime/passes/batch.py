"""Passes of several sequences together: token ids in, guesses and logits out.

In: a manifest, its loaded graphs, the memory that they reach. Out: a `Pass` for each sequence, on
the host. Everything else stays where it is: hidden rows, masks, keys and values, the logits that
nobody reads. A batch belongs to one thread; its graphs are shared.

Each sequence has a lane of the cache; a pass runs neighbouring lanes. Its arrays are rectangular:
shorter trees are filled up with rows that nobody reads, shorter texts with slots that the mask hides,
and on TensorRT a bucket with sequences of one row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from firp.runtime.backends.interface import Graph, Memory, Runner
from firp.runtime.bundle.dtypes import to_float32
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import IN_PLACE, WINDOW_INPUTS
from firp.runtime.errors import FirpError
from firp.runtime.passes.buffers import Buffers, HalfKey, Hidden, PredictorsKey
from firp.runtime.passes.in_place_cache import last_slots
from firp.runtime.passes.kv_cache import KVCache
from firp.runtime.passes.pass_plan import BY_ROW, Pass, PassPlan
from firp.runtime.passes.pass_shape import BatchSize, PassShape, filled, result_of
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.layout import Layout, layout
from firp.runtime.trees.tree import root_only

_NOBODY = PassPlan(root_only(0), decode=())  # in a column without a sequence
COPIES = "copies"  # of masks, indices and accepted rows, among the times by graph name


class Batch:
    """Buffers of as many sequences as there are lanes. A pass that does not fit is an error."""

    def __init__(self, manifest: Manifest, graphs: dict[str, Graph], memory: Memory, size: BatchSize):
        self.manifest = manifest
        self.model = manifest.model
        self._masks = manifest.model.masks(range(manifest.model.num_hidden_layers))
        self.memory = memory
        self.size = size
        self._graphs = graphs
        self._runners = self._make_runners()
        upper = graphs["upper"].spec
        self._contract = upper.cache
        self._top_k = upper.output("top_ids").shape[-1]
        self._no_rows = () if upper.cache == IN_PLACE else (0,)
        self.buffers = self._make_buffers(size)
        self._marks: list[tuple[str, Any, Any]] = []
        self._last_rows = 0  # T of the last pass
        # milliseconds by graph name, and of copies, of everything that has been waited for
        self.spent_ms = dict.fromkeys((*graphs, COPIES), 0.0)

    def _make_runners(self) -> dict[str, Runner]:
        return {name: graph.runner(self.memory) for name, graph in self._graphs.items()}

    def _make_buffers(self, size: BatchSize) -> Buffers:
        return Buffers(self.manifest, self._contract, self.memory, size, self._top_k)

    @property
    def kv(self) -> KVCache:
        """The cache of all lanes."""
        return self.buffers.kv

    @property
    def prompt_decoded_rows(self) -> int:
        """Rows of a prompt that one pass decodes at most, where all are asked for."""
        size = self.size
        return size.decoded_rows if self._contract == IN_PLACE else size.decoded_rows // size.lanes

    def resize(self, size: BatchSize) -> None:
        """Make room for as many lanes, as long texts, as large passes, and no more; what is cached stays,
        but for lanes and texts that do not fit. Both memories are there for a moment. Raises FirpError
        when that does not suffice; nothing has changed then.
        """
        memory = self.memory
        before = memory.taken()
        try:
            buffers = self._make_buffers(size)
        except FirpError:
            memory.free(memory.taken() - before)
            raise
        buffers.kv.adopt(self.kv)
        lanes = min(size.lanes, self.size.lanes)
        memory.copy(self.buffers.accepted[:lanes], buffers.accepted[:lanes])
        self.buffers = buffers
        self._runners = self._make_runners()  # those of before hold arrays of their last runs
        self.size = size
        memory.free(before)

    def forward(self, lanes: range, plans: Sequence[PassPlan]) -> list[Pass]:
        """One pass after the cached tokens of these lanes, a plan for each. Raises FirpError when it
        does not fit the batch.
        """
        shape = self._shape(lanes, plans)
        rows, k = shape.rows, self.manifest.num_predictors
        asked, plans = plans, [*plans, *[_NOBODY] * (shape.width - len(plans))]
        trees = [filled(plan.tree, rows) for plan in plans]
        sources = [plan.sources + (0,) * (shape.sources - len(plan.sources)) for plan in plans]
        layouts = [
            layout(tuple(tree.parents), tuple(tree.depths), drafting, shape.offsets)
            for tree, drafting in zip(trees, sources, strict=True)
        ]
        by_row, recurs = self._by_row(plans, rows), not plans[0].prompt
        drafts = shape.sources * shape.offsets
        # what the lower half reads of one sequence is then the beginning of what the upper one reads
        at_once = shape.width == 1 and self._contract == IN_PLACE
        with self._timed(COPIES):
            self._reserve(lanes, shape.all_rows)
            self._write("input_ids", [tree.tokens for tree in trees])
            self._write_rows(lanes, layouts if at_once else [found.first(rows) for found in layouts])
            decoded = [plan.decoded for plan in plans]
            counts = self._write_decoded(decoded, [range(rows, rows + drafts)] * len(plans))
        self._last_rows = rows
        self._run_half("lower", Hidden.LOWER, lanes, rows, (0, 0), by_row, recurs)
        hidden = Hidden.LOWER
        if drafts:
            hidden = Hidden.EXTENDED
            self._predict(Hidden.LOWER, rows, sources, recurs)
            with self._timed(COPIES):
                if shape.offsets < k:
                    hidden = self._pack(shape)
                if not at_once:
                    self._write_rows(lanes, layouts)
        self._run_half("upper", hidden, lanes, shape.all_rows, counts, by_row, recurs)
        return self._read(shape, asked, drafts)

    def _shape(self, lanes: range, plans: Sequence[PassPlan]) -> PassShape:
        shape = PassShape(
            len(self.kv.view(lanes, 0).places),
            max(len(plan.tree.tokens) for plan in plans),
            max(len(plan.sources) for plan in plans),
            max(plan.offsets for plan in plans),
            max(len(plan.decoded) for plan in plans),
        )
        rows = shape.width * (shape.rows + shape.sources * self.manifest.num_predictors)
        decoded = shape.width * max(shape.decoded, shape.sources * shape.offsets)
        if rows > self.size.rows or decoded > self.size.decoded_rows:
            raise FirpError(
                "pass larger than the session",
                got=f"{rows} rows, {decoded} decoded",
                expected=f"at most {self.size.rows}, {self.size.decoded_rows} decoded",
            )
        return shape

    def draft(self, lane: int, offsets: int) -> Guesses:
        """A draft pass: the pseudo rows of the row that a lane committed last, through the upper half
        alone.
        """
        hidden = self.buffers.hidden
        lanes = range(lane, lane + 1)
        with self._timed(COPIES):
            self.memory.copy(self.buffers.accepted[lane : lane + 1], hidden[Hidden.SOURCE])
            self._reserve(lanes, offsets)
            # the row's own position is that of the last cached token
            drafts = Layout(np.tri(offsets, dtype=bool), np.arange(offsets))
            self._write_rows(lanes, [drafts])
            counts = self._write_decoded([()], [range(offsets)])
        self._predict(Hidden.SOURCE, 1, [(0,)], recurs=True)
        with self._timed(COPIES):  # the pseudo rows alone
            extended, packed = hidden[Hidden.EXTENDED], hidden[Hidden.PACKED]
            self.memory.copy(extended[1 : 1 + offsets], packed[:offsets])
        self._run_half("upper", Hidden.PACKED, lanes, offsets, counts, by_row=True, recurs=True)
        buffers = self.buffers
        return Guesses(*self._wait(buffers.draft_ids[:offsets], buffers.draft_logprobs[:offsets]))

    def commit(self, lane: int, place: int, rows: Sequence[int]) -> None:
        """Keep the keys and values of these rows of a lane's last pass, in this order. place: of the
        lane in that pass.
        """
        with self._timed(COPIES):
            self.kv.commit(lane, rows)
            if rows and self.manifest.num_predictors:
                last = place * self._last_rows + rows[-1]
                hidden = self.buffers.hidden[Hidden.LOWER][last : last + 1]
                self.memory.copy(hidden, self.buffers.accepted[lane : lane + 1])

    def swap(self, lane: int, other: int) -> None:
        """Let two lanes change places."""
        self.kv.swap(lane, other)
        accepted, spare = self.buffers.accepted, self.buffers.hidden[Hidden.SOURCE]
        one, two = accepted[lane : lane + 1], accepted[other : other + 1]
        self.memory.copy(one, spare)
        self.memory.copy(two, one)
        self.memory.copy(spare, two)

    def forget_marks(self) -> None:
        """Forget the times of what nobody waited for."""
        self._marks.clear()

    def hidden_states(self, place: int, rows: int) -> np.ndarray:
        """[rows, D] f32: the first rows of the last pass at the prediction layer. place: of the lane in
        that pass.
        """
        first = place * self._last_rows
        return to_float32(self.memory.read(self.buffers.hidden[Hidden.LOWER][first : first + rows])[0])

    def _predict(self, hidden: Hidden, rows: int, sources: Sequence[tuple[int, ...]], recurs: bool) -> None:
        """Extend the first `rows` hidden states of each lane by all pseudo rows of each source."""
        self._write("source_rows", sources)
        key = PredictorsKey(hidden, rows, len(sources[0]), len(sources))
        binding = self.buffers.binding(key, recurs)
        with self._timed("predictors"):
            self._runners["predictors"].run(binding)

    def _pack(self, shape: PassShape) -> Hidden:
        """Close the gaps that offsets beyond the first ones leave."""
        k, rows, lanes = self.manifest.num_predictors, shape.rows, shape.width
        kept = [
            rows + source * k + offset for source in range(shape.sources) for offset in range(shape.offsets)
        ]
        hidden, batched = self.buffers.hidden, self.buffers.batched
        extended = batched(hidden[Hidden.EXTENDED], lanes, rows + shape.sources * k)
        packed = batched(hidden[Hidden.PACKED], lanes, shape.all_rows)
        self.memory.move_rows(extended, [*range(rows), *kept], packed, 0)
        return Hidden.PACKED

    def _run_half(
        self,
        graph: str,
        hidden: Hidden,
        lanes: range,
        rows: int,
        counts: tuple[int, int],
        by_row: bool,
        recurs: bool,
    ) -> None:
        """Run one half of the model on views of the cache. counts: of rows that are decoded, see
        `_write_decoded`.
        """
        views = [self.kv.view(lanes, rows, window) for window in self.buffers.masks[graph].values()]
        with self._timed(COPIES):
            self.kv.begin(self.buffers.slabs(graph), lanes, rows)
        with self._timed(graph):
            seen = tuple(view.seen for view in views)
            key = HalfKey(graph, seen, hidden, rows, *counts, by_row, views[0].places)
            self._runners[graph].run(self.buffers.binding(key, recurs))

    def _by_row(self, plans: Sequence[PassPlan], rows: int) -> bool:
        """Whether the rows of a pass attend one by one. It must not depend on its pseudo rows: the
        others would have other bits with them than without.
        """
        if plans[0].prompt:
            return rows == 1
        return rows <= BY_ROW or self.manifest.quantization is not None

    def _reserve(self, lanes: range, rows: int) -> None:
        """Make room in the cache for the rows of a pass."""
        self.kv.reserve(lanes, rows)
        lengths = [self.kv.lengths[lane] for lane in lanes]
        self._write("write_at", lengths)
        if self.model.window and self.buffers.window:
            seen = last_slots(lengths, rows, self.model.window, len(self.kv.view(lanes, rows).seen.slots))
            for name, slot in zip(WINDOW_INPUTS, (seen.start, seen.stop), strict=True):
                self.buffers.window[name][0] = slot

    def _write_decoded(
        self, logits_rows: Sequence[Sequence[int]], draft_rows: Sequence[Sequence[int]]
    ) -> tuple[int, int]:
        """Write the rows that each lane decodes to logits, and those that it decodes to guesses;
        return how many there are of each in a lane. Where a graph takes no empty list, the first row
        stands in for it.
        """
        counts = []
        for name, rows in (("logits_rows", logits_rows), ("draft_rows", draft_rows)):
            most = max(map(len, rows))
            some = [[*few, *(0,) * (most - len(few))] or self._no_rows for few in rows]
            self._write(name, some)
            counts.append(len(some[0]))
        return counts[0], counts[1]

    def _write(self, name: str, values: Any) -> None:
        """Write indices of any shape, one lane's after the other's."""
        flat = np.array(values, np.int64).reshape(-1)
        self.memory.write(self.buffers.indices[name][: len(flat)], flat)

    def _write_rows(self, lanes: range, layouts: Sequence[Layout]) -> None:
        """Write where the rows of each lane stand, and what they see. Pseudo rows may guess past the
        context, where nothing is kept of them; the tables of positions end there.
        """
        depths = np.stack([found.depths for found in layouts])
        width, rows = depths.shape
        lengths = [*(self.kv.lengths[lane] for lane in lanes), *[0] * (width - len(lanes))]
        last = self.model.max_position_embeddings - 1
        positions = np.minimum(depths + np.array(lengths)[:, None], last)  # [width, R]
        self._write("position_ids", positions)
        for name, window in self._masks.items():
            seen, firsts, _ = self.kv.view(lanes, rows, window)
            before = seen.slots.start  # slots that are not in view
            bias = self.buffers.bias(name, width, rows, seen.columns)
            for place, (length, first) in enumerate(zip(lengths, firsts, strict=True)):
                cached, visible = max(0, length - before), layouts[place].visible
                self.memory.write_bias(bias[place], visible, positions[place] - before, cached, first, window)

    def _read(self, shape: PassShape, plans: Sequence[PassPlan], drafts: int) -> list[Pass]:
        """Wait for the pass, and bring what was asked for."""
        buffers, width, decoded = self.buffers, shape.width, shape.decoded
        wanted = [buffers.top_ids[: width * decoded], buffers.top_logprobs[: width * decoded]]
        if drafts:
            wanted += [buffers.draft_ids[: width * drafts], buffers.draft_logprobs[: width * drafts]]
        bring_logits = any(plan.bring_logits for plan in plans)
        if bring_logits:
            wanted.append(buffers.logits[: width * decoded])
        found = [array.reshape(width, -1, array.shape[-1]) for array in self._wait(*wanted)]
        return [
            result_of(plan, [array[place] for array in found], bool(drafts), bring_logits, shape.offsets)
            for place, plan in enumerate(plans)
        ]

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
