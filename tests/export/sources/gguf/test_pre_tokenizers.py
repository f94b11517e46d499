"""Ways to cut text, held to the published expressions as another engine of regular expressions reads them."""

from itertools import pairwise
from pathlib import Path

import pytest
import regex
from support.tokenizer_texts import texts

from firp.export.sources.gguf.pre_tokenizers import CUTS, OF_LLAMA_CPP, OF_MODELS

TRICKY = (
    "1 12 123 1234 12345 1234567 1234567x ١٢٣٤٥ x1234_5678 3.14159 ²³½Ⅷ",
    "It's WE'LL can'T 'tis o'clock ''s y'all'd've rock'n'roll 'ſ",
    "你好abc漢字カナかな한국어 ab漢C字d 〇々ー·：；，。！…“引”‘用’—ㄅㄆㄇ ㄱㄴ 〱︰﹏",
    "\n\n\r\n \n\t \r a\r\n\r\nb  \n c   d\u00a0\u00a0e\u3000f\u2028g\u0085h",
    "x" + " " * 700 + "y" + " " * 9 + "\t\t z" + " " * 5,
    "🙂🙃 👩‍👩‍👧‍👦!🏳️‍🌈?! ❤️a 1️⃣2 🇩🇪🇫🇷",
    "naïve e\u0301e\u0301 x\u0301 A\u0308b हिन्दी में লেখা ไทย๑๒๓ ភាសាខ្មែរ မြန်မာ ລາວ",
    "CamelCaseABCdef iPhone XMLHttp ǅungla ʰaʱ ﾊﾝｶｸ １２３ＡＢｃ",
    "a b c d, e f. g_h/i\\j//k\n/l ((m)) [n]{o} <p> !!q ~r `s` #t @u $v ^w |x =y +z",
    "https://a.b/c?d=e&f=g#h  // c++ --- ... !!!\n???/\r\n",
    "Ὦ ὕδωρ Привет мир שלום عليكم، كيف؟ ۔ । ，、。",
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = CL100K.replace("DIGITS", "{1,3}"), CL100K.replace("DIGITS", "")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NOT_HAN = r"(?:(?!\p{Han})%s)"  # which tokenization_kimi.py writes as [...&&[^\p{Han}]]
KIMI = r"\p{Han}+|" + O200K.replace("/]*", "]*")
KIMI = KIMI.replace(UPPER, NOT_HAN % UPPER).replace(LOWER, NOT_HAN % LOWER)
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK_V3 = [r"\p{N}{1,3}", KANA, DEEPSEEK3]
HAN = "[一-龥\u0800-一가-\ud7ff]+"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)"
    r"|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
)
SPARK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
)
YOUTU = [
    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-\u303f\ufe30-\ufe4f]+|[ㄅ-ㄯ]+|" + KANA,
    O200K.replace(r"\p{N}{1,3}", r"\p{N}"),
]
AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)


def threes_from_the_end(piece):
    """llama.cpp's own function for AFMoE: digits in groups of three, the first of them shorter."""
    found = []
    for run in regex.findall(r"\p{N}+|\P{N}+", piece):
        first = len(run) % 3 if regex.match(r"\p{N}", run) else len(run)
        found += [run[:first], *(run[at : at + 3] for at in range(first, len(run), 3))]
    return found


def named(expressions, *names):
    return dict.fromkeys(names, expressions)


# Expressions in turn, of src/llama-vocab.cpp, or of the model's own files where that differs
PUBLISHED = {
    **named((GPT2,), "gpt-2", "phi-2", "mpt", "olmo"),
    **named((GPT2,), "exaone4", "jais", "trillion", "granite-docling"),
    **named((GPT2,), "gigachat", "a.x-4.0", "mellum"),
    **named(
        (
            r"\p{N}",
            GPT2,
        ),
        "smollm",
        "starcoder",
        "refact",
        "command-r",
        "exaone",
    ),
    **named(
        (
            r"\p{N}",
            GPT2,
        ),
        "codeshell",
        "minerva-7b",
        "mellum2",
    ),
    **named((LLAMA3,), "llama-bpe", "llama3", "llama-v3", "dbrx", "glm4", "chatglm-bpe"),
    **named((LLAMA3,), "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0", "smaug-bpe"),
    **named((QWEN2,), "qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"),
    **named((QWEN2,), "megrez", "kormo", "solar-open", "grok-2"),
    "qwen35": [QWEN35],
    "jais-2": [JAIS2],
    "minicpm5": [r"\p{N}{1,3}", CL100K.replace("DIGITS", "+")],
    "ufakzeka": [QWEN2.removeprefix("(?i:'s|'t|'re|'ve|'m|'ll|'d)|")],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "seed-coder": [SEED_CODER],
    **named((BAILING,), "bailingmoe", "bailingmoe2", "llada-moe"),
    "exaone-moe": [EXAONE_MOE],
    "tekken": [TEKKEN],
    **named((O200K,), "gpt-4o", "llama4", "minimax-m2", "kanana2", "talkie"),
    **named(
        (
            r"\d{1,3}(?=(?:\d{3})*\b)",
            O200K,
        ),
        "tiny_aya",
        "cohere2moe",
    ),
    "youtu": YOUTU,
    "kimi-k2": [KIMI],
    **named(DEEPSEEK_V3, "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    "spark2_5": [r"\p{N}{1,3}", KANA, SPARK, r"\p{N}"],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"],
    "afmoe": [threes_from_the_end, AFMOE_SCRIPTS, DEEPSEEK3],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    **named((BLOOM,), "bloom", "poro-chat", "gpt3-finnish"),
    "viking": [BLOOM, r"\p{N}"],
}


def pieces(expression, text):
    """What an expression matches, and what lies between."""
    if callable(expression):
        return expression(text)
    ends = [0, *(end for match in regex.finditer(expression, text) for end in match.span()), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def expected(expressions, text):
    found = [text]
    for expression in expressions:
        found = [part for piece in found for part in pieces(expression, piece)]
    return [piece for piece in found if piece]


@pytest.mark.parametrize("pre", PUBLISHED)
def test_texts_are_cut_as_published(pre):
    for text in (*TRICKY, *texts(100)):
        found = CUTS[pre].pre_tokenizer.pre_tokenize_str(text)
        assert [text[start:end] for _, (start, end) in found] == expected(PUBLISHED[pre], text)


def test_every_way_to_cut_is_held_to_what_was_published():
    """But DeepSeek's list of alphabets, which would stand here as it stands there; and Falcon's digits, which
    are those among spelled bytes. `test_tokenizer.py` has both.
    """
    assert CUTS.keys() - PUBLISHED.keys() == {"deepseek-llm", "falcon"}
    assert not OF_MODELS.keys() & OF_LLAMA_CPP.keys()


def test_what_llama_cpp_does_with_pieces():
    """It looks a whole piece up first, and begins texts, for these alone; and it normalizes nothing."""
    whole = {pre for pre, cut in OF_LLAMA_CPP.items() if cut.ignore_merges}
    begins = {pre for pre, cut in OF_LLAMA_CPP.items() if cut.add_bos}
    assert begins == {"falcon3", "falcon-h1", "pixtral", "lfm2"}
    assert whole == begins | {"minicpm5", "youtu"}
    assert all(cut.normalizer is None for cut in OF_LLAMA_CPP.values())


def test_the_page_lists_every_name():
    page = (Path(__file__).parents[4] / "docs" / "gguf.md").read_text()
    for source, table in (("the models", OF_MODELS), ("llama.cpp", OF_LLAMA_CPP)):
        assert f"| {source} | {', '.join(f'`{name}`' for name in table)} |" in page
