"""Ways to cut text before it is merged to tokens, by llama.cpp's names.

In: the name that a GGUF file gives (`tokenizer.ggml.pre`). Out: what the tokenizer of the models that
llama.cpp knows by that name does (`OF_MODELS`); where that is not published in full, what llama.cpp
itself does for the file (`OF_LLAMA_CPP`: src/llama-vocab.cpp).
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
_LETTERS, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UFAKZEKA = rf"{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_UFAKZEKA}"
_LLAMA3 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_MINICPM5 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}+|{_SIGNS}|{_SPACES}"
_MANY_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_JAIS2 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|{_MANY_SPACES}|\s"
_SEED_CODER = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BAILING = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+"
_WORD = r"\p{L}\p{M}*"
_EXAONE_MOE = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:{_WORD}(?: {_WORD})*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_QWEN35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
_O200K = rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_YOUTU = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_NO_HAN = _CASED.replace(_UPPER, _UPPER[:-1] + r"&&[^\p{Han}]]").replace(
    _LOWER, _LOWER[:-1] + r"&&[^\p{Han}]]"
)
_KIMI = rf"\p{{Han}}+|{_NO_HAN}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_LATIN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = rf"{_LATIN}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_LATIN}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_THREE_DIGITS = r"\p{N}{1,3}"
_THREE_FROM_THE_END = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
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
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-"
    "\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _KANA
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-"
    "\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
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

_GPT4O = Cut(_regexes(_O200K), ignore_merges=True)
_GLM4 = Cut(_regexes(_LLAMA3), ignore_merges=True)
_DEEPSEEK_V3 = Cut(_regexes(_THREE_DIGITS, _KANA, _DEEPSEEK3))
_BLOOM_WORDS = Cut(_regexes(_BLOOM))

OF_MODELS = {
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
    "midm-2.0": _LLAMA_BPE,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "minimax-m2": Cut(_regexes(_O200K), NFC()),
    "glm4": _GLM4,
    "chatglm-bpe": _GLM4,
    "dbrx": Cut(_regexes(_LLAMA3)),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "stablelm2": _QWEN,
    "hunyuan": Cut(_regexes(_QWEN2), NFC(), ignore_merges=True),
    "qwen35": Cut(_regexes(_QWEN35), NFC()),
    "kimi-k2": Cut(_regexes(_KIMI), ignore_merges=True),
    "tekken": Cut(_regexes(_TEKKEN), ignore_merges=True, add_bos=True),
    "bloom": _BLOOM_WORDS,
    "falcon": Cut(Sequence(_FALCON)),
    "exaone": Cut(_SINGLE_DIGITS, NFKC()),
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-llm": Cut(
        _regexes("[\r\n]", rf"\s?[{_ALPHABETS}]+", rf"\s?{_PUNCTUATION}", r"\s+$", _HAN, digits=True)
    ),
    "deepseek-coder": Cut(_regexes("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, digits=True)),
}
# No normalizer, which llama.cpp has for none; expressions as it quotes them from a tokenizer.json, if it does
OF_LLAMA_CPP = {
    **dict.fromkeys(("exaone4", "jais", "trillion", "granite-docling"), _GPT2),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum"), _GPT2),
    **dict.fromkeys(("codeshell", "minerva-7b", "mellum2"), _DIGITS),
    **dict.fromkeys(("falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA_BPE),
    "smaug-bpe": Cut(_regexes(_LLAMA3)),
    "jais-2": Cut(_regexes(_JAIS2)),
    "minicpm5": Cut(_regexes(_THREE_DIGITS, _MINICPM5), ignore_merges=True),
    **dict.fromkeys(("megrez", "kormo", "solar-open", "grok-2"), Cut(_regexes(_QWEN2))),
    "ufakzeka": Cut(_regexes(_UFAKZEKA)),
    "laguna": Cut(_regexes(r"[^\n]+|\n+", _QWEN2)),
    "seed-coder": Cut(_regexes(_SEED_CODER)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), Cut(_regexes(_BAILING))),
    "exaone-moe": Cut(_regexes(_EXAONE_MOE)),
    **dict.fromkeys(("kanana2", "talkie"), Cut(_regexes(_O200K))),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), Cut(_regexes(r"\d{1,3}(?=(?:\d{3})*\b)", _O200K))),
    "youtu": Cut(_regexes(_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK_V3),
    "spark2_5": Cut(_regexes(_THREE_DIGITS, _KANA, _SPARK, digits=True)),
    "afmoe": Cut(_regexes(_THREE_FROM_THE_END, _AFMOE_SCRIPTS, _DEEPSEEK3)),
    "superbpe": Cut(_regexes(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(("poro-chat", "gpt3-finnish"), _BLOOM_WORDS),
    "viking": Cut(_regexes(_BLOOM, digits=True)),
}
CUTS = OF_MODELS | OF_LLAMA_CPP
