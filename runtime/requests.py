"""Requests of one bundle: prompts and params, checked and made token ids.

In: text, token ids or messages, and `SamplingParams`. Out: a `Request`. What a bundle lacks, a
tokenizer or a chat template, is missed when it is asked for.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from firp.runtime.arguments import checked, instance
from firp.runtime.bundle.format import Bundle
from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.chat.messages import is_messages
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.grammar.compiler import GrammarCompiler
from firp.runtime.loop.text import encode_text
from firp.runtime.loop.text_limit import TextLimit
from firp.runtime.passes.request import Request, check_prompt
from firp.runtime.sampling import SamplingParams

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]  # text, token ids, or messages
PARAMS = instance(SamplingParams).or_none()


class Requests:
    """What makes requests. tokenizer: None where the bundle has none."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer | None):
        self.bundle = bundle
        self.tokenizer = tokenizer
        self.model = bundle.manifest.model
        self._limit = TextLimit(tokenizer, self.model.max_position_embeddings) if tokenizer else None
        self._added_tokens = tokenizer.get_added_tokens_decoder() if tokenizer else {}

    @functools.cached_property
    def chat_encoder(self) -> ChatEncoder:
        """What makes token ids of messages. Raises PromptError where the bundle has no chat template
        or no tokenizer.
        """
        files, folder = self.bundle.manifest.files, self.bundle.path
        return ChatEncoder.from_files(
            lambda name: (folder / name).read_bytes() if name in files else None, self.tokenizer, self._limit
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Raises PromptError."""
        return check_prompt(self._tokens(prompt), self.model.vocab_size, self.model.max_position_embeddings)

    def make(
        self, prompt: Prompt, params: SamplingParams | None, tools: Sequence[Mapping[str, Any]] | None
    ) -> Request:
        """A prompt and how to continue it; see `Engine.request`."""
        params = checked("params", params, PARAMS) or SamplingParams()
        if params.stop and self.tokenizer is None:
            raise FirpError("stop strings need a tokenizer", got="a bundle without one")
        context = self.model.max_position_embeddings
        if tools is not None and not is_messages(prompt):
            raise FirpError("tools go with messages", got=f"{prompt!r:.60}", fix="leave out the tools")
        tokens = self._tokens(prompt, tools)
        ends = self._ends(params, is_messages(prompt))
        grammar = self._grammars.compile(params.structured) if params.structured else None
        return Request.checked(tokens, params, ends, self.model.vocab_size, context, grammar)

    def _tokens(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None = None) -> Sequence[int]:
        """Token ids of a prompt: those of its text or its messages, or as given."""
        if is_messages(prompt):
            return self.chat_encoder.encode(prompt, tools)
        if not isinstance(prompt, str):
            return prompt
        if not prompt:
            raise PromptError("empty prompt", got="''", expected="at least one character")
        if self.tokenizer is None:
            raise PromptError("the bundle has no tokenizer", got="a text prompt", expected="input_ids")
        self._limit.check(prompt)
        return encode_text(self.tokenizer, prompt)

    @functools.cached_property
    def _grammars(self) -> GrammarCompiler:
        """What compiles grammars for this bundle."""
        if self.tokenizer is None:
            raise FirpError("structured output needs a tokenizer", got="a bundle without one")
        return GrammarCompiler(self.tokenizer, self.model.vocab_size, self.bundle.eos_token_ids)

    def _ends(self, params: SamplingParams, of_messages: bool) -> frozenset[int]:
        """Tokens that end a sequence: those of the bundle, after messages the tokenizer's own too,
        and the stop strings that are special tokens (never text).
        """
        special = {token.content: i for i, token in self._added_tokens.items() if token.special}
        stops = frozenset(special[stop] for stop in params.stop if stop in special)
        turn = self.chat_encoder.ends if of_messages else ()
        return stops if params.ignore_eos else stops.union(self.bundle.eos_token_ids, turn)
