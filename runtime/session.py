"""The loop: prefill → (draft →) propose → run → accept → commit.

In: a model's loaded graphs, prompt ids, sampling params. Out: a `Step` for every pass, with the tokens it emitted.
A `Session` holds one batch's buffers and belongs to one caller; the graphs it runs are shared. Drafted decoding emits the
tokens that plain decoding emits: the tree decides only how many of them come from one pass.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from firp.runtime import sampling
from firp.runtime.backend import Graph
from firp.runtime.bundle import Manifest
from firp.runtime.drafter import Drafter
from firp.runtime.errors import FirpError, PromptError, SessionBusyError
from firp.runtime.guesses import Guesses
from firp.runtime.kv_buffer import KVBuffer
from firp.runtime.sampling import SamplingParams
from firp.runtime.tree import DraftTree, attention_bias, chain, layout, root_only

PREFILL_ROWS = 256  # rows of one prefill pass; a longer prompt takes several

Pick = Callable[[np.ndarray, int, SamplingParams], int]


class Pass(NamedTuple):
    """What one pass through the graphs left behind; views, valid until the next pass."""

    hidden_states: np.ndarray  # [T, D] at the prediction layer
    logits: np.ndarray  # [G, V] f32
    top_ids: np.ndarray  # [G, k] i64
    top_logprobs: np.ndarray  # [G, k] f32


class StepTimes(NamedTuple):
    """Milliseconds of one step: in each graph, and in all."""

    lower_ms: float = 0.0
    predictors_ms: float = 0.0
    upper_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def outside_ms(self) -> float:
        """Spent in the loop itself: trees, masks, bindings, picks, commits."""
        return self.total_ms - self.lower_ms - self.predictors_ms - self.upper_ms


class Step(NamedTuple):
    """One decoding step. The first step of a sequence is its prefill: one token, no tree."""

    tokens: list[int]  # emitted by this step: the accepted drafts and the bonus token
    rows: int  # T: tree nodes that were verified; 0 for the prefill
    accept_length: int  # accepted drafts, the bonus token not counted
    times: StepTimes


class Session:
    """Buffers for one sequence. `capacity`: tokens that it may cache, prompt included; `rows`: the most rows of one pass, pseudo
    rows included. A longer prompt is prefilled in several passes; a tree that does not fit is an error.
    """

    def __init__(self, manifest: Manifest, graphs: dict[str, Graph], capacity: int, rows: int):
        self.manifest, self.model = manifest, manifest.model
        self._runners = {name: graph.runner() for name, graph in graphs.items()}
        split, layers = manifest.prediction_layer, self.model.num_hidden_layers
        self._slabs = {"lower": _slab_names(range(split)), "upper": _slab_names(range(split, layers))}
        self._lock = threading.Lock()
        model, dtype = self.model, np.dtype(manifest.dtype)
        self.rows = rows
        top_k = graphs["upper"].spec.output("top_ids").shape[-1]
        self.kv = KVBuffer(model.num_hidden_layers, capacity, rows, 1, model.num_key_value_heads, model.head_dim, dtype)
        self._hidden = np.empty((2, rows, model.hidden_size), dtype)  # lower's output, predictors' output
        self._bias = np.empty(rows * (capacity + rows), dtype)
        self._logits = np.empty((1, rows, model.vocab_size), np.float32)
        self._top_ids = np.empty((1, rows, top_k), np.int64)
        self._top_logprobs = np.empty((1, rows, top_k), np.float32)
        self.graph_ms = dict.fromkeys(graphs, 0.0)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the session for one caller; a second one gets a SessionBusyError and the cache stays whole."""
        if not self._lock.acquire(blocking=False):
            raise SessionBusyError(
                "session in use", got="a second caller", expected="one at a time", fix="give each thread its own session"
            )
        try:
            yield
        finally:
            self._lock.release()

    def forward(
        self, tree: DraftTree, sources: list[int], offsets: int | None = None, logits_rows: list[int] | None = None
    ) -> Pass:
        """One pass over a tree (or a chain of prompt tokens), and over the pseudo rows of its sources, after the cached tokens.

        offsets: pseudo rows of each source, all K by default; logits_rows: the tree rows to decode, all by default; the pseudo
        rows are always decoded, after them.
        """
        split, cached, k = len(tree.tokens), self.kv.length, self.manifest.num_predictors
        offsets = offsets or k
        if split + len(sources) * k > self.rows:
            got = f"{split + len(sources) * k} rows"
            raise FirpError("pass larger than the session", got=got, expected=f"at most {self.rows}")
        visible, depths = layout(tree.parents, tree.depths, sources, offsets)
        rows = len(depths)
        positions = np.minimum(depths + cached, self.model.max_position_embeddings - 1)[None]  # [1, R]
        token_ids = np.array([tree.tokens], np.int64)  # [1, T]
        hidden = self._hidden[:1, :split]
        shared = {"position_ids": positions[:, :split], "attention_bias": self._mask(visible[:split, :split], positions[0, :split])}
        self._run("lower", split, {"input_ids": token_ids, **shared}, {"hidden_states": hidden})
        if sources:
            hidden = self._predict(hidden, sources, offsets)
            shared = {"position_ids": positions, "attention_bias": self._mask(visible, positions[0])}
        decoded = np.arange(rows) if logits_rows is None else np.array([*logits_rows, *range(split, rows)])  # [G]
        return self._upper(hidden, decoded, shared)._replace(hidden_states=self._hidden[0, :split])

    def draft(self, row: int, offsets: int) -> Guesses:
        """A draft pass: the pseudo rows of one row of the last pass, the one committed last, through the upper half alone."""
        pseudo = self._predict(self._hidden[:1, row : row + 1], [0], offsets)[:, 1:]  # [1, offsets, D]
        last = self.model.max_position_embeddings - 1
        positions = np.minimum(np.arange(offsets) + self.kv.length, last)[None]  # the row's own is that of the last cached token
        bias = self._mask(np.tri(offsets, dtype=bool), positions[0])
        result = self._upper(pseudo, np.arange(offsets), {"position_ids": positions, "attention_bias": bias})
        return Guesses(result.top_ids, result.top_logprobs)

    def _predict(self, hidden: np.ndarray, sources: list[int], offsets: int) -> np.ndarray:
        """[1, T, D] → [1, T + M*offsets, D]: the rows, then the first pseudo rows of each source."""
        started, (_, rows, size), k = time.perf_counter(), hidden.shape, self.manifest.num_predictors
        out = self._hidden[1:, : rows + len(sources) * k]
        inputs = {"hidden_states": hidden, "source_rows": np.array([sources], np.int64)}
        self._runners["predictors"].run(inputs, {"hidden_states_out": out})
        if offsets < k:  # close the gaps that the further offsets leave
            kept = out[0, rows:].reshape(len(sources), k, size)[:, :offsets].reshape(-1, size)
            out = out[:, : rows + len(kept)]
            out[0, rows:] = kept
        self.graph_ms["predictors"] += (time.perf_counter() - started) * 1e3
        return out

    def _upper(self, hidden: np.ndarray, decoded: np.ndarray, shared: dict[str, np.ndarray]) -> Pass:
        count = len(decoded)
        outputs = {
            "logits": self._logits[:, :count],
            "top_ids": self._top_ids[:, :count],
            "top_logprobs": self._top_logprobs[:, :count],
        }
        self._run("upper", hidden.shape[1], {"hidden_states": hidden, "logits_rows": decoded[None], **shared}, outputs)
        return Pass(hidden[0], self._logits[0, :count], self._top_ids[0, :count], self._top_logprobs[0, :count])

    def _mask(self, visible: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """attention_bias [1, 1, R, P+R], in a buffer that the next mask reuses."""
        rows, keys = len(positions), self.kv.length + len(positions)
        bias = self._bias[: rows * keys].reshape(rows, keys)
        attention_bias(visible, positions, self.kv.length, self.model.sliding_window, bias)
        return bias[None, None]

    def _run(self, graph: str, rows: int, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        """Run one half of the model on views of the cache."""
        for past, new, slab in self._slabs[graph]:
            inputs[past] = self.kv.past(slab)
            outputs[new] = self.kv.new(slab, rows)
        started = time.perf_counter()
        self._runners[graph].run(inputs, outputs)
        self.graph_ms[graph] += (time.perf_counter() - started) * 1e3


def _slab_names(layers: range) -> list[tuple[str, str, int]]:
    """Graph input, graph output and slab of the KV buffer, for the keys and values of each layer."""
    parts = [(layer, slab, part) for layer in layers for slab, part in enumerate(("key", "value"))]
    return [(f"past_{part}.{layer}", f"new_{part}.{layer}", 2 * layer + slab) for layer, slab, part in parts]


def decode(
    session: Session,
    prompt: list[int],
    params: SamplingParams,
    ends: tuple[int, ...],
    drafter: Drafter | None = None,
    pick: Pick = sampling.pick,
) -> Iterator[Step]:
    """Decode one sequence; plainly when `drafter` is None. Ends at a token of `ends` (emitted), at `params.max_new_tokens`, or
    when the context or the session's capacity is full. The consumer may stop at any time.
    """
    with session.exclusive():
        context = min(session.model.max_position_embeddings, session.kv.capacity + 1)
        check_prompt(prompt, session.model.vocab_size, context)
        limit = min(params.max_new_tokens, context - len(prompt))
        clock, offsets = _Clock(session), drafter.offsets if drafter else 0
        row, result = prefill(session, prompt, offsets if drafter and not drafter.draft_pass and limit > 1 else 0)
        root, guesses = pick(result.logits[0], len(prompt), params), guesses_of(row, [row], 1, offsets, result)
        yield Step([root], 0, 0, clock.lap())
        emitted = 1
        while emitted < limit and root not in ends:
            clock.start()
            max_depth = limit - emitted - 1  # a step emits one token more than it accepts
            if drafter and drafter.draft_pass and max_depth > 0:
                guesses = session.draft(row, offsets)
            tree = drafter.propose(root, guesses, max_depth) if drafter else root_only(root)
            sources = drafter.sources(tree) if drafter and max_depth > 0 else []
            result = session.forward(tree, sources, offsets)
            path, tokens = accept(tree, result.logits, session.kv.length, params, ends, pick)
            session.kv.commit(path)
            guesses = guesses_of(path[-1], sources, len(tree.tokens), offsets, result)
            row, root = path[-1], tokens[-1]
            emitted += len(tokens)
            yield Step(tokens, len(tree.tokens), len(path) - 1, clock.lap())


def prefill(session: Session, prompt: list[int], offsets: int) -> tuple[int, Pass]:
    """Fill an empty cache with the prompt, in as few passes as fit. Returns the last token's row in the last pass, and that pass,
    with the pseudo rows of that row, `offsets` of them, decoded after it.
    """
    session.kv.length = 0
    size = min(PREFILL_ROWS, session.rows - session.manifest.num_predictors)
    for start in range(0, len(prompt), size):
        tokens = prompt[start : start + size]
        last = len(tokens) - 1
        sources = [last] if offsets and start + len(tokens) == len(prompt) else []
        result = session.forward(chain(tokens), sources, offsets, logits_rows=[last])
        session.kv.commit(range(len(tokens)))
    return last, result


def accept(
    tree: DraftTree, logits: np.ndarray, cached: int, params: SamplingParams, ends: tuple[int, ...], pick: Pick
) -> tuple[list[int], list[int]]:
    """Walk from the root along the target's own picks. Returns the accepted rows, root first, and the emitted tokens.

    logits: [T or more, V]; cached: the root's position. The walk stops at a token that no child holds, or that ends the text.
    """
    path, tokens = [0], []
    while True:
        row = path[-1]
        token = pick(logits[row], cached + tree.depths[row] + 1, params)
        tokens.append(token)
        child = next((n for n in range(row + 1, len(tree.tokens)) if tree.parents[n] == row and tree.tokens[n] == token), None)
        if child is None or token in ends:
            return path, tokens
        path.append(child)


def guesses_of(row: int, sources: list[int], decoded_rows: int, offsets: int, result: Pass) -> Guesses | None:
    """The guesses of one source's pseudo rows, or None when the row was no source. decoded_rows: before the pseudo rows."""
    if row not in sources or len(result.top_ids) == decoded_rows:
        return None
    start = decoded_rows + sources.index(row) * offsets
    return Guesses(result.top_ids[start : start + offsets], result.top_logprobs[start : start + offsets])


def check_prompt(prompt: list[int], vocab_size: int, context_tokens: int) -> None:
    """Raises PromptError for a prompt that cannot be decoded."""
    if not prompt:
        raise PromptError("empty prompt", got="0 tokens", expected="at least 1")
    wrong = next((token for token in prompt if not isinstance(token, int | np.integer) or not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise PromptError("token id out of range", got=wrong, expected=f"0 to {vocab_size - 1}")
    if len(prompt) >= context_tokens:
        raise PromptError(
            "prompt longer than the context",
            got=f"{len(prompt)} tokens",
            expected=f"at most {context_tokens - 1}",
            fix="shorten the prompt",
        )


class _Clock:
    """Times one step; what the consumer does between two steps is not counted."""

    def __init__(self, session: Session):
        self._session = session
        self.start()

    def start(self) -> None:
        self._began, self._graphs = time.perf_counter(), dict(self._session.graph_ms)

    def lap(self) -> StepTimes:
        spent = {f"{name}_ms": value - self._graphs[name] for name, value in self._session.graph_ms.items()}
        return StepTimes(**spent, total_ms=(time.perf_counter() - self._began) * 1e3)
