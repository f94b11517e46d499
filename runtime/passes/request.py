"""One request, checked once: everything below the public API receives it.

In: token ids, sampling params, the tokens that end a text. Out: a `Request`, and what it needs of a
session.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from firp.runtime.arguments import integer
from firp.runtime.errors import ContextFullError, FirpError, PromptError
from firp.runtime.grammar.walk import Grammar, Walk
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig


class Needs(NamedTuple):
    """Sizes that a request needs of a session."""

    capacity: int  # cached tokens
    rows: int  # of its largest pass, pseudo rows included
    tree_rows: int  # of its largest decoding pass, likewise


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. Made by `Engine.request`, which checks both."""

    prompt: tuple[int, ...]
    params: SamplingParams
    ends: frozenset[int]  # tokens that end the text; they are emitted
    max_tokens: int  # to emit at most: what was asked for, or what the context has room for
    grammar: Grammar | None = None  # what the output must be

    @staticmethod
    def checked(
        prompt: Sequence[int],
        params: SamplingParams,
        ends: frozenset[int],
        vocab_size: int,
        context: int,
        grammar: Grammar | None = None,
    ) -> "Request":
        """Make a request. Raises PromptError for a prompt that cannot be decoded, FirpError for params
        that name a token which the model lacks. context: of the model, in tokens.
        """
        tokens = check_prompt(prompt, vocab_size, context)
        for name, ids in params.token_ids.items():
            if ids and max(ids) >= vocab_size:
                expected = f"token ids, 0 to {vocab_size - 1}"
                raise FirpError(f"bad {name}", got=max(ids), expected=expected)
        max_tokens = min(params.max_new_tokens, context - len(tokens))
        return Request(tuple(tokens), params, ends | set(params.stop_token_ids), max_tokens, grammar)

    def walk(self) -> Walk | None:
        """The walk of the grammar along this request's output; None where there is none."""
        if self.grammar is None:
            return None
        return self.grammar.walk(len(self.prompt), self.ends, self.params.stop_token_ids)

    def needs(self, tree: TreeConfig | None, num_predictors: int) -> Needs:
        """Sizes that decoding takes with this tree; None: plainly."""
        tree_rows = tree.pass_rows(num_predictors) if tree else 1
        piece = min(len(self.prompt), PREFILL_ROWS)
        return Needs(
            capacity=len(self.prompt) + self.max_tokens,
            rows=max(piece + num_predictors, tree_rows),
            tree_rows=tree_rows,
        )


def check_prompt(prompt: Sequence[int], vocab_size: int, context_tokens: int) -> list[int]:
    """The token ids of a prompt as a list: a list, a tuple or an array [T] of integers. Raises
    PromptError for a prompt that cannot be decoded, and its ContextFullError for one that is too
    long.
    """
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # numpy's own numbers wrap around
    if not isinstance(ids, Sequence) or isinstance(prompt, str | bytes | bytearray | memoryview):
        raise PromptError("bad prompt", got=type(prompt).__name__, expected="text, or a list of token ids")
    if not ids:
        raise PromptError("empty prompt", got="0 tokens", expected="at least 1")
    if len(ids) >= context_tokens:
        raise ContextFullError(
            "prompt longer than the context",
            got=f"{len(ids)} tokens",
            expected=f"at most {context_tokens - 1}",
            fix="shorten the prompt",
        )
    tokens = [token if type(token) is int else integer(token) for token in ids]
    for token, given in zip(tokens, ids, strict=True):
        if token is None or not 0 <= token < vocab_size:
            raise PromptError(
                "token id out of range", got=f"{given!r:.60}", expected=f"0 to {vocab_size - 1}"
            )
    return tokens
