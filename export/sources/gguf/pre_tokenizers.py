"""Ways to cut text before it is merged to tokens, by llama.cpp's names.

In: the name that a GGUF file gives (`tokenizer.ggml.pre`). Out: what the tokenizer.json of the models
that llama.cpp knows by that name says. A name stands here only if that is known exactly.
"""

from typing import NamedTuple

from tokenizers import Regex
from tokenizers.normalizers import NFC, NFKC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split


class Cut(NamedTuple):
    """What goes before the merges of a byte-level BPE."""

    pre_tokenizer: PreTokenizer
    normalizer: Normalizer | None = None
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    add_bos: bool = False  # where the file does not say


def _regexes(*patterns: str, digits: bool = False) -> PreTokenizer:
    """Cut at each pattern in turn, then spell bytes."""
    steps = [Split(Regex(pattern), "isolated") for pattern in patterns]
    single = [Digits(individual_digits=True)] if digits else []
    return Sequence([*steps, *single, ByteLevel(add_prefix_space=False, use_regex=False)])


_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # of English words
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
# Ranges as code points: of some of these characters, editors and browsers make others
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_PUNCTUATION = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_ALPHABETS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-"
    "\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_GPT2 = Cut(ByteLevel(add_prefix_space=False))
_NEOX = Cut(ByteLevel(add_prefix_space=False), NFC())
_SINGLE_DIGITS = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
_DIGITS = Cut(_SINGLE_DIGITS)
_QWEN = Cut(_regexes(_QWEN2), NFC())
_FALCON = [
    Punctuation("contiguous"),
    ByteLevel(add_prefix_space=False),
    Digits(individual_digits=False),
    Split(Regex("[0-9][0-9][0-9]"), "isolated"),
]
_LLAMA_BPE = Cut(_regexes(_LLAMA3), ignore_merges=True, add_bos=True)

CUTS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _NEOX,
    "olmo": _NEOX,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": Cut(_SINGLE_DIGITS, NFC(), add_bos=True),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "gpt-4o": Cut(_regexes(_O200K), ignore_merges=True),
    "minimax-m2": Cut(_regexes(_O200K), NFC()),
    "glm4": Cut(_regexes(_LLAMA3), ignore_merges=True),
    "dbrx": Cut(_regexes(_LLAMA3)),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "qwen35": Cut(_regexes(_QWEN35), NFC()),
    "tekken": Cut(_regexes(_TEKKEN), ignore_merges=True, add_bos=True),
    "bloom": Cut(_regexes(_BLOOM)),
    "falcon": Cut(Sequence(_FALCON)),
    "exaone": Cut(_SINGLE_DIGITS, NFKC()),
    "deepseek-v3": Cut(_regexes(r"\p{N}{1,3}", _KANA, _DEEPSEEK3)),
    "deepseek-llm": Cut(
        _regexes("[\r\n]", rf"\s?[{_ALPHABETS}]+", rf"\s?{_PUNCTUATION}", r"\s+$", _HAN, digits=True)
    ),
    "deepseek-coder": Cut(_regexes("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, digits=True)),
}
