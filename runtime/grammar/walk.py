"""The walk of a grammar along one output: what may come next, and what must.

In: a compiled grammar, the context of a row. Out: a mask [V] of the tokens that may follow, whether
anything may, drafts that are legal, and tokens that the grammar forces. A walk goes on from where it
stood: of a context only what differs from the last one is read.
"""

from typing import Any

import numpy as np

from firp.runtime.errors import GrammarError
from firp.runtime.picking.context import Context

_TOLD_CHARACTERS = 300


class Grammar:
    """A compiled grammar, which many requests may share; each walks along it by itself."""

    def __init__(self, matcher: Any, tokenizer: Any, vocab_size: int):
        self._matcher = matcher  # at the beginning; never moved
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size

    def walk(self, prompt_tokens: int, ends: frozenset[int], stop_token_ids: tuple[int, ...]) -> "Walk":
        """A walk of its own. ends: tokens that end the text; those of `stop_token_ids` that are text
        may stand wherever the grammar has them.
        """
        is_special = self._tokenizer.is_special_token
        closing = {token for token in ends if token not in stop_token_ids or is_special(token)}
        eos = self._tokenizer.eos_token
        return Walk(self._matcher.deep_copy(), self.vocab_size, eos, prompt_tokens, frozenset(closing))


class Walk:
    """A grammar's state along one output. eos: the end token that the matcher knows; prompt_tokens:
    how many tokens come before the output; closing: tokens that end it, and stand only where the
    grammar accepts.
    """

    def __init__(self, matcher: Any, vocab_size: int, eos: int, prompt_tokens: int, closing: frozenset[int]):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = eos
        self._prompt_tokens = prompt_tokens
        self.closing = closing
        self._ends = np.array(sorted(closing), np.int64)
        self._decided: list[int] = []
        self._sure = prompt_tokens  # tokens of `_decided` that are prompt, or that the matcher took
        self._taken: list[int] = []  # by the matcher, of the output

    def allowed(self, context: Context) -> np.ndarray:
        """[V] bool: the tokens that may follow. End tokens follow where the grammar accepts."""
        self._move(context)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        mask[self._eos] = False  # the request's own end tokens stand for it
        mask[self._ends] = self._matcher.is_accepting()
        return mask

    def complete(self, context: Context) -> bool:
        """Whether nothing may follow."""
        self._move(context)
        return self._matcher.is_stopped()

    def legal(self, context: Context, paths: list[list[int]]) -> list[int]:
        """How many tokens of each path may follow, one after the other. End tokens never may: a draft
        of one lets nothing follow, so it is worth no row.
        """
        self._move(context)
        return [self._matcher.validate_tokens(self._before_end(path)) for path in paths]

    def forced(self, context: Context) -> list[int]:
        """Tokens that spell what the grammar forces next, as the tokenizer would cut it; others may
        spell it too.
        """
        self._move(context)
        return self._matcher.compute_ff_tokens()

    def _before_end(self, path: list[int]) -> list[int]:
        """The beginning of a path, up to its first end token."""
        at = next((i for i, token in enumerate(path) if token in self.closing), len(path))
        return path[:at]

    def _move(self, context: Context) -> None:
        """Stand after a context."""
        decided, path = context
        if decided is not self._decided or len(decided) < self._sure:
            self._decided, self._sure = decided, self._prompt_tokens
        known = self._taken[self._sure - self._prompt_tokens :]
        target = [*decided[self._sure :], *path]
        same = next(
            (i for i, (old, new) in enumerate(zip(known, target, strict=False)) if old != new),
            min(len(known), len(target)),
        )
        if back := len(known) - same:
            self._matcher.rollback(back)
            del self._taken[-back:]
        if fresh := target[same:]:
            self._matcher.consume_tokens(fresh)
            self._taken += fresh
        self._sure = len(decided)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError("the grammar cannot go on", got=told(self._matcher.get_error()))


def told(message: str) -> str:
    """What the library says is wrong, without its state, in one line."""
    line = " ".join(message.partition("<state>")[0].split())
    if line.startswith("NoExtension"):  # its name for a grammar that has no words
        return "no text meets it"
    return line if len(line) <= _TOLD_CHARACTERS else line[:_TOLD_CHARACTERS] + " ..."
