"""The loop: prefill → (draft →) propose → run → accept → commit.

In: a `Session`, prompt ids, sampling params. Out: a `Step` for every pass, with the tokens it
emitted. Drafted decoding emits the tokens that plain decoding emits: the tree decides only how many
of them come from one pass.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from firp.runtime import sampling
from firp.runtime.drafters.interface import Drafter
from firp.runtime.errors import PromptError
from firp.runtime.passes.session import Pass, Session
from firp.runtime.sampling import SamplingParams, integer
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import DraftTree, chain, root_only

PREFILL_ROWS = 256  # rows of one prefill pass; a longer prompt takes several

Pick = Callable[[np.ndarray, int, SamplingParams], int]


class StepTimes(NamedTuple):
    """Milliseconds of one step: in each graph, and in all."""

    lower_ms: float = 0.0
    predictors_ms: float = 0.0
    upper_ms: float = 0.0
    copies_ms: float = 0.0  # of masks, indices and accepted rows; a commit counts in the step after
    total_ms: float = 0.0

    @property
    def outside_ms(self) -> float:
        """Spent in the loop itself, copies included: trees, masks, bindings, picks, commits."""
        return self.total_ms - self.lower_ms - self.predictors_ms - self.upper_ms


class Step(NamedTuple):
    """One decoding step. The first step of a sequence is its prefill: one token, no tree."""

    tokens: list[int]  # emitted by this step: the accepted drafts and the bonus token
    rows: int  # T: tree nodes that were verified; 0 for the prefill
    accept_length: int  # accepted drafts, the bonus token not counted
    times: StepTimes


def decode(
    session: Session,
    prompt: list[int],
    params: SamplingParams,
    ends: tuple[int, ...],
    drafter: Drafter | None = None,
    pick: Pick = sampling.pick,
) -> Iterator[Step]:
    """Decode one sequence; plainly when `drafter` is None. Ends at a token of `ends` (emitted), at
    `params.max_new_tokens`, or when the context or the session's capacity is full. The consumer may
    stop at any time.
    """
    with session.exclusive():
        context = min(session.model.max_position_embeddings, session.kv.capacity + 1)
        prompt = check_prompt(prompt, session.model.vocab_size, context)
        limit = min(params.max_new_tokens, context - len(prompt))
        clock, offsets = _Clock(session), drafter.offsets if drafter else 0
        logits = session.memory.free_reads or params.temperature > 0 or pick is not sampling.pick
        row, result = prefill(
            session, prompt, offsets if drafter and not drafter.draft_pass and limit > 1 else 0, logits
        )
        root, guesses = (
            _pick(result, 0, len(prompt), params, pick),
            guesses_of(row, [row], 1, offsets, result),
        )
        yield Step([root], 0, 0, clock.lap())
        emitted = 1
        while emitted < limit and root not in ends:
            clock.start()
            max_depth = limit - emitted - 1  # a step emits one token more than it accepts
            if drafter and drafter.draft_pass and max_depth > 0:
                guesses = session.draft(row, offsets)
            tree = drafter.propose(root, guesses, max_depth) if drafter else root_only(root)
            sources = drafter.sources(tree) if drafter and max_depth > 0 else []
            result = session.forward(tree, sources, offsets, logits=logits)
            path, tokens = accept(tree, result, session.kv.length, params, ends, pick)
            session.commit(path)
            guesses = guesses_of(path[-1], sources, len(tree.tokens), offsets, result)
            row, root = path[-1], tokens[-1]
            emitted += len(tokens)
            yield Step(tokens, len(tree.tokens), len(path) - 1, clock.lap())


def prefill(session: Session, prompt: list[int], offsets: int, logits: bool = True) -> tuple[int, Pass]:
    """Fill an empty cache with the prompt, in as few passes as fit. Returns the last token's row in
    the last pass, and that pass, with the pseudo rows of that row, `offsets` of them, decoded after
    it. logits: whether to bring its logits to the host.
    """
    session.kv.length = 0
    size = min(PREFILL_ROWS, session.rows - session.manifest.num_predictors)
    for start in range(0, len(prompt), size):
        tokens = prompt[start : start + size]
        last = len(tokens) - 1
        sources = [last] if offsets and start + len(tokens) == len(prompt) else []
        result = session.forward(chain(tokens), sources, offsets, [last], logits, repeats=False)
        session.commit(range(len(tokens)))
    return last, result


def accept(
    tree: DraftTree, result: Pass, cached: int, params: SamplingParams, ends: tuple[int, ...], pick: Pick
) -> tuple[list[int], list[int]]:
    """Walk from the root along the target's own picks. Returns the accepted rows, root first, and
    the emitted tokens.

    result: of a pass over the tree; cached: the root's position. The walk stops at a token that no
    child holds, or that ends the text.
    """
    path, tokens = [0], []
    while True:
        row = path[-1]
        token = _pick(result, row, cached + tree.depths[row] + 1, params, pick)
        tokens.append(token)
        child = next(
            (
                n
                for n in range(row + 1, len(tree.tokens))
                if tree.parents[n] == row and tree.tokens[n] == token
            ),
            None,
        )
        if child is None or token in ends:
            return path, tokens
        path.append(child)


def _pick(result: Pass, row: int, position: int, params: SamplingParams, pick: Pick) -> int:
    """The target's own pick; a greedy one needs no logits."""
    return (
        int(result.top_ids[row, 0]) if result.logits is None else pick(result.logits[row], position, params)
    )


def guesses_of(row: int, sources: list[int], decoded_rows: int, offsets: int, result: Pass) -> Guesses | None:
    """The guesses of one source's pseudo rows, or None when the row was no source. decoded_rows:
    before the pseudo rows.
    """
    if row not in sources or len(result.top_ids) == decoded_rows:
        return None
    start = decoded_rows + sources.index(row) * offsets
    return Guesses(result.top_ids[start : start + offsets], result.top_logprobs[start : start + offsets])


def check_prompt(prompt: Sequence[int], vocab_size: int, context_tokens: int) -> list[int]:
    """The token ids of a prompt as a list: a list, a tuple or an array [T] of integers. Raises
    PromptError for a prompt that cannot be decoded.
    """
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # numpy's own numbers wrap around
    if not isinstance(ids, Sequence) or isinstance(prompt, str | bytes | bytearray | memoryview):
        raise PromptError("bad prompt", got=type(prompt).__name__, expected="text, or a list of token ids")
    if not ids:
        raise PromptError("empty prompt", got="0 tokens", expected="at least 1")
    tokens = [token if type(token) is int else integer(token) for token in ids]
    for token, given in zip(tokens, ids, strict=True):
        if token is None or not 0 <= token < vocab_size:
            raise PromptError(
                "token id out of range", got=f"{given!r:.60}", expected=f"0 to {vocab_size - 1}"
            )
    if len(tokens) >= context_tokens:
        raise PromptError(
            "prompt longer than the context",
            got=f"{len(tokens)} tokens",
            expected=f"at most {context_tokens - 1}",
            fix="shorten the prompt",
        )
    return tokens


class _Clock:
    """Times one step; what the consumer does between two steps is not counted."""

    def __init__(self, session: Session):
        self._session = session
        self.start()

    def start(self) -> None:
        self._began, self._before = time.perf_counter(), dict(self._session.spent_ms)

    def lap(self) -> StepTimes:
        spent = {f"{name}_ms": value - self._before[name] for name, value in self._session.spent_ms.items()}
        return StepTimes(**spent, total_ms=(time.perf_counter() - self._began) * 1e3)
