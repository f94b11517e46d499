"""Texts that are longer than a context, however they are cut: known without tokenizing them, which
takes seconds for megabytes, and a hundred times their memory.

In: a tokenizer. Out: tokens that a text has at least, by the longest token of the vocabulary. Where a
tokenizer may drop characters, or make one token of any number of them, nothing is known, and nothing
refused.
"""

import functools
import json
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import BPE

from firp.runtime.errors import ContextFullError
from firp.runtime.loop.byte_level import byte_of_character

_USUAL = 8  # characters of a token: a vocabulary is read for longer texts only
_COMPOSED = 4  # characters that NFC, or NFKC, makes one of at most: so many have decompositions
_NORMALIZERS = {"NFC": _COMPOSED, "NFKC": _COMPOSED, "NFD": 1, "NFKD": 1, "Prepend": 1, "ByteLevel": 1}
_CUTS = frozenset(("ByteLevel", "Digits", "Metaspace"))  # which drop nothing
_FALLBACK = {f"<0x{byte:02X}>": byte for byte in range(256)}


class TextLimit:
    """Refuses what can never fit. context: tokens of the model."""

    def __init__(self, tokenizer: Tokenizer, context: int):
        self._tokenizer = tokenizer
        self._context = context

    def check(self, text: str) -> None:
        """Raises ContextFullError for a text of more tokens than the context has room for."""
        if len(text) <= _USUAL * self._context or self._bound is None:
            return
        least = self._bound.least(text)
        if least >= self._context:
            raise ContextFullError(
                "prompt longer than the context",
                got=f"{len(text)} characters, {least} tokens or more",
                expected=f"at most {self._context - 1} tokens",
                fix="shorten the prompt",
            )

    @functools.cached_property
    def _bound(self) -> "Bound | None":
        return text_bound(self._tokenizer)


class Bound(NamedTuple):
    """What tokens stand for at most."""

    longest: int  # characters of a token, or bytes
    dropped: bytes | None  # bytes that are no token, where bytes are counted; None: characters are

    def least(self, text: str) -> int:
        """Tokens that a text has at least."""
        counted = text.encode("utf-8", "replace") if self.dropped is not None else text
        size = len(counted.translate(None, self.dropped) if self.dropped else counted)
        return -(-size // self.longest)


def text_bound(tokenizer: Tokenizer) -> Bound | None:
    """What the tokens of a tokenizer stand for at most; None where that is not known."""
    normalizers, cuts = _parts(tokenizer.normalizer), _parts(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    keeps = (
        isinstance(tokenizer.model, BPE)
        and all(map(_keeps, normalizers))
        and all(map(_only_cuts, cuts))
        and not any(token.lstrip or token.rstrip for token in added)  # takes any white space beside it
    )
    if not keeps:
        return None
    vocabulary = tokenizer.get_vocab()
    normal = tokenizer.normalizer.normalize_str if normalizers else str
    names = [form for token in added for form in (token.content, normal(token.content))]
    longest = max(map(len, [*vocabulary, *(name.encode() for name in names)]))
    bytewise = any(part["type"] == "ByteLevel" for part in normalizers + cuts)
    spelled = byte_of_character() if bytewise else _FALLBACK
    dropped = bytes(byte for name, byte in spelled.items() if name not in vocabulary)
    if bytewise and not normalizers:
        return Bound(longest, dropped)
    if dropped or not (bytewise or tokenizer.model.byte_fallback):
        return None
    composed = max((_NORMALIZERS.get(part["type"], 1) for part in normalizers), default=1)
    return Bound(longest * composed, None)


def _parts(stage: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, as tokenizer.json has them."""

    def steps(part: dict[str, Any]) -> list[dict[str, Any]]:
        if part["type"] != "Sequence":
            return [part]
        inner = part["normalizers"] if "normalizers" in part else part["pretokenizers"]
        return [step for each in inner for step in steps(each)]

    return [] if stage is None else steps(json.loads(stage.__getstate__()))


def _keeps(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer leaves as many characters as there are, or as many as NFC does."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _NORMALIZERS
    pattern = normalizer["pattern"].get("String")
    return pattern is not None and len(normalizer["content"]) >= len(pattern)


def _only_cuts(cut: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer drops nothing."""
    return cut["type"] in _CUTS or (cut["type"] in ("Split", "Punctuation") and cut["behavior"] != "Removed")
