"""Texts of every script, code, white space and special tokens, and tokenizers to try on them."""

import random

from tokenizers import Tokenizer

from firp.export.sources.gguf.tokenizer import tokenizer_files
from firp.export.sources.gguf.vocabulary import Vocabulary

PIECES = (
    "The quick brown fox jumps over the lazy dog.",
    "don't I'LL we've he'd THEY'RE it's",
    "def f(x):\n\tif x >= 10:\n        return x**2  # squared\n\n\nprint(f'{a_b}')",
    "1234567890 3.14 ١٢٣ ²³ Ⅷ ½ 2024-11-26",
    "Привет, мир! Ёж и Ґанок",
    "你好，世界。今天天气不错！",
    "こんにちは世界、カタカナｶﾀｶﾅ",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف الحال؟",
    "שלום עולם",
    "नमस्ते दुनिया क्षि",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε Ὦ ὕδωρ",
    "Xin chào thế giới",
    "e\u0301 é ﬁ ﬀ ß ẞ İ ı K Å Ω",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ❤️",
    "  leading", "trailing   ", "\t\ttabs\n\n\n  mixed \r\n", "\u00a0nbsp\u2009thin\u3000wide",
    "\x00\x01\x7f\u200b\ufeff", " " * 17, "\n" * 5, "a/b\\c@d#e $5 100% [x]{y}<z> ~`|^",
    "ÀÉÎõü CamelCaseWord", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|", "x<|im_end|>y <tool> z</tool>",
    "<|endoftext|>", "<s></s>",
)  # fmt: skip


def texts(count=500):
    rng = random.Random(0)
    found = list(PIECES)
    while len(found) < count:
        found.append("".join(rng.choice(PIECES) + rng.choice((" ", "\n", "", "7")) for _ in range(5)))
    return found[:count]


def imported(tmp_path, metadata):
    """The files that firp makes of metadata, and the tokenizer in them."""
    vocabulary = Vocabulary.read(tmp_path / "model.gguf", metadata)
    files = tokenizer_files(vocabulary)
    return files, Tokenizer.from_str(files["tokenizer.json"].decode())
