"""What is refused untokenized would never have fitted: every text has as many tokens as the bound says."""

import unicodedata

import pytest
from support.chat_bundles import small_tokenizer
from support.tokenizer_texts import texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from firp.runtime.errors import ContextFullError
from firp.runtime.loop.text import encode_text
from firp.runtime.loop.text_limit import TextLimit, text_bound

HOSTILE = [
    " " * 3000,
    "a" * 3000,
    "e\u0301" * 999,
    "\u1f82" * 99,
    "\u1100\u1161\u11a8" * 99,
    "\U0001d400" * 99,
]
HOSTILE += ["<|end|>" * 99, "\x04" * 999, "\U00040000" * 99, "\n" * 999, "ab" * 999, "\u212a\u0327" * 99]


def byte_level(*steps, missing="", cut=None, **added):
    """Merges of a few pairs over all bytes but some."""
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(missing))
    merges = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "b"), ("ab", "ab"), ("a", "a"), ("Ì", "ģ")]
    names = [*letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(BPE({name: i for i, name in enumerate(dict.fromkeys(names))}, merges))
    tokenizer.normalizer = normalizers.Sequence(list(steps)) if steps else None
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell]) if cut else spell
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, **added)])
    return tokenizer


def sentence_piece(fallback=256):
    """Merges over characters, and bytes for the others."""
    pairs = [("▁", "▁"), ("▁▁", "▁▁"), ("a", "b")]
    names = ["▁", "a", "b", *(left + right for left, right in pairs)]
    names += [f"<0x{byte:02X}>" for byte in range(fallback)]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


KNOWN = {
    "bytes": byte_level(),
    "bytes but some": byte_level(missing="Ąñ"),
    "NFC": byte_level(normalizers.NFC()),
    "NFKC": byte_level(normalizers.NFKC(), normalizers.Replace("a", "bb")),
    "digits": byte_level(cut=pre_tokenizers.Split(Regex(r"\d"), "isolated")),
    "characters": sentence_piece(),
}
UNKNOWN = {
    "a token that takes white space": byte_level(lstrip=True),
    "strips": byte_level(normalizers.Strip()),
    "fewer characters": byte_level(normalizers.Replace("aa", "b")),
    "a pattern": byte_level(normalizers.Replace(Regex(" +"), " ")),
    "removes": byte_level(cut=pre_tokenizers.Split(" ", "removed")),
    "drops": byte_level(cut=pre_tokenizers.WhitespaceSplit()),
    "bytes that NFC may make": byte_level(normalizers.NFC(), missing="ñ"),
    "unknown bytes": sentence_piece(fallback=255),
    "characters alone": small_tokenizer(),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_text_has_no_fewer_tokens_than_the_bound(name):
    bound = text_bound(KNOWN[name])
    for text in texts(200) + HOSTILE:
        assert bound.least(text) <= len(encode_text(KNOWN[name], text, add_special_tokens=False)), text
    assert bound.least("xyz" * 1000) >= 100  # it says something


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_said_of_a_tokenizer_that_may_drop_characters(name):
    assert text_bound(UNKNOWN[name]) is None
    TextLimit(UNKNOWN[name], 10).check("a" * 10_000)


def test_a_character_is_composed_of_four_at_most():
    stable = (chr(code) for code in range(0x30000) if unicodedata.normalize("NFC", chr(code)) == chr(code))
    assert max(len(unicodedata.normalize("NFD", character)) for character in stable) == 4


def test_only_what_can_never_fit_is_refused():
    limit = TextLimit(KNOWN["bytes"], 100)
    longest = len("<|end|>")
    limit.check(" " * (99 * longest))
    with pytest.raises(
        ContextFullError, match="got 1000 characters, 143 tokens or more, expected at most 99"
    ):
        limit.check("x" * 1000)
    TextLimit(KNOWN["bytes but some"], 100).check("\x04" * 10_000)  # which are no tokens at all
