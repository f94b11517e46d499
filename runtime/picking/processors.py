"""Processors: what bias, penalties, bans and a least length do to a row of logits, before the pick.

In: logits [V] f32 of one row, and the context of the token to pick. Out: logits of the same shape. A
function of the two and nothing else: along a tree every row has its own path before it, so drafted
decoding computes what plain decoding computes. The order is that of Hugging Face's and vLLM's
processors where they agree: bias, repetition, presence and frequency, then what is forbidden; top-k,
top-p and min-p come after it (`firp.runtime.picking.pick`).
"""

from collections.abc import Iterable

import numpy as np

from firp.runtime.picking.context import Context
from firp.runtime.sampling import SamplingParams


class Processors:
    """The processors of one request. prompt_tokens: how many tokens its prompt has; ends: tokens
    that end its text.
    """

    def __init__(self, params: SamplingParams, prompt_tokens: int, ends: frozenset[int]):
        self._params = params
        self._biased = np.array([token for token, _ in params.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in params.logit_bias], np.float32)
        allowed = params.allowed_token_ids
        self._allowed = None if allowed is None else np.array(allowed, np.int64)
        self._banned = np.array(params.banned_token_ids, np.int64)
        self._ends = np.array(sorted(ends), np.int64)
        self._may_end = prompt_tokens + params.min_tokens  # the first position where an end may stand
        penalized = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        self._counts = Counts(prompt_tokens) if penalized else None
        self.change = bool(
            params.logit_bias or penalized or allowed is not None or len(self._banned) or params.min_tokens
        )  # anything at all

    def __call__(self, logits: np.ndarray, context: Context) -> np.ndarray:
        """The row that the token after `context` is picked from; a new one where anything changes."""
        if not self.change:
            return logits
        row = logits.copy()
        row[self._biased] += self._bias
        if self._counts:
            self._counts.penalize(row, context, self._params)
        if self._allowed is not None:
            kept = row[self._allowed]
            row[:] = -np.inf
            row[self._allowed] = kept
        row[self._banned] = -np.inf
        if context.position < self._may_end:
            row[self._ends] = -np.inf
        return row


class Counts:
    """How often each token stands in a context. Decided tokens are counted once; those of a path are
    added for one row, and taken away again.
    """

    def __init__(self, prompt_tokens: int):
        self._prompt_tokens = prompt_tokens
        self._decided: list[int] = []  # that `_counted` tokens of are counted
        self._counted = 0
        self._all = np.zeros(0, np.int32)  # [V] in prompt and output
        self._generated = np.zeros(0, np.int32)  # [V] in the output alone

    def penalize(self, row: np.ndarray, context: Context, params: SamplingParams) -> None:
        """Apply the penalties to a row [V], in place."""
        self._count(context.decided, len(row))
        self._add(context.path, 1)
        if params.repetition_penalty != 1:
            seen = np.flatnonzero(self._all)
            scores = row[seen]
            penalty = np.float32(params.repetition_penalty)
            row[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        if params.presence_penalty or params.frequency_penalty:
            generated = np.flatnonzero(self._generated)
            times = self._generated[generated].astype(np.float32)
            row[generated] -= np.float32(params.frequency_penalty) * times
            row[generated] -= np.float32(params.presence_penalty)
        self._add(context.path, -1)

    def _count(self, decided: list[int], vocab_size: int) -> None:
        """Count what was decided since the last row."""
        if decided is not self._decided or len(decided) < self._counted:
            self._decided, self._counted = decided, 0
            self._all = np.zeros(vocab_size, np.int32)
            self._generated = np.zeros(vocab_size, np.int32)
        fresh = decided[self._counted :]
        prompt = max(self._prompt_tokens - self._counted, 0)
        np.add.at(self._all, np.array(fresh[:prompt], np.int64), 1)
        self._add(fresh[prompt:], 1)
        self._counted = len(decided)

    def _add(self, generated: Iterable[int], times: int) -> None:
        for token in generated:
            self._all[token] += times
            self._generated[token] += times
