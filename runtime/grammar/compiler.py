"""Grammars compiled for one tokenizer, by llguidance.

In: a tokenizer, a `StructuredOutput`. Out: a `Grammar`, or one line that says where it failed. What
llguidance says comes as a state of its matcher, never as an exception; its panics come as either.
"""

import functools
import json
import re
from contextlib import AbstractContextManager
from typing import Any

from tokenizers import Tokenizer

from firp.runtime.errors import FirpError, foreign_errors
from firp.runtime.extras import require
from firp.runtime.grammar.schemas import schema_fault
from firp.runtime.grammar.walk import Grammar, told
from firp.runtime.structured import StructuredOutput

# between two parts of JSON: what people and models write; a schema's own "x-guidance" says otherwise.
# Without a bound a model that is unsure of a value goes on with spaces to its last token.
WHITESPACE = r" |\n[ \t]{0,40}"
KEPT_GRAMMARS = 64  # compiled ones, for requests with the same grammar


class GrammarCompiler:
    """Compiles grammars for one vocabulary. eos_token_ids: of the bundle. Raises FirpError where
    llguidance is not installed, or cannot use the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]):
        require("structured output", ["llguidance"])
        self._vocab_size = vocab_size
        size = tokenizer.get_vocab_size()
        special = [token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]
        ends = [token for token in (*sorted(eos_token_ids), *special) if token < min(size, vocab_size)]
        if not ends:
            raise FirpError("structured output needs an end-of-sequence token", got="a tokenizer without one")
        with _told_errors("the grammar library cannot use this tokenizer"):
            self._tokenizer = _library().LLTokenizer(tokenizer.to_str(), max(vocab_size, size), ends[:1])
        self.compile = functools.lru_cache(KEPT_GRAMMARS)(self._compile)

    def _compile(self, structured: StructuredOutput) -> Grammar:
        """A grammar for this vocabulary. Raises FirpError when it does not compile, or no text meets
        it.
        """
        what = f"the grammar of {structured.kind} does not compile"
        with _told_errors(what):
            matcher = _library().LLMatcher(self._tokenizer, source(structured), log_level=0)
            if not matcher.is_error():  # what is wrong with some is seen with the first mask alone
                matcher.compute_bitmask()
        if matcher.is_error():
            raise FirpError(what, got=_wrong(structured, matcher.get_error()))
        return Grammar(matcher, self._tokenizer, self._vocab_size)


def source(structured: StructuredOutput) -> str:
    """The grammar as llguidance reads it."""
    matcher = _library().LLMatcher
    value = getattr(structured, structured.kind)
    if structured.kind == "regex":
        return matcher.grammar_from_regex(value)
    if structured.kind == "lark":
        return matcher.grammar_from_lark(value)
    if structured.kind == "choice":
        return matcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, value)))
    schema = json.loads(value) if structured.kind == "json_schema" else {"type": "object"}
    schema = {} if schema is True else schema
    bounded = isinstance(schema, dict) and "x-guidance" not in schema
    options = {"whitespace_pattern": WHITESPACE} if bounded else None
    return matcher.grammar_from_json_schema(json.dumps(schema), options)


def _wrong(structured: StructuredOutput, error: str) -> str:
    """Why a grammar does not compile: where in a schema, and without the Lark that is ours."""
    if structured.kind == "lark":
        return told(error)
    fault = schema_fault(structured.json_schema) if structured.kind == "json_schema" else None
    if fault is not None:
        return f"{fault.reason} at {fault.path}"
    said = error.rpartition("\n   1 | ")[0] or error
    return told(re.sub(r"^at \d+\(\d+\): ", "", said))


def _library() -> Any:
    """llguidance, loaded when the first grammar comes."""
    import llguidance

    return llguidance


def _told_errors(what: str) -> AbstractContextManager[None]:
    """Turn what the library raises into one FirpError that says where it failed."""
    return foreign_errors(lambda got: FirpError(what, got=got), lambda error: told(str(error)))
