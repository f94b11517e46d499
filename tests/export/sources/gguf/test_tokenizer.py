"""Tokenizers of GGUF files: the ids of the tokenizer that the file was written from, or a refusal."""

import json
import re

import pytest
from support.gguf_files import WIDE, tokenizer_metadata, write_gguf
from support.small_models import make_model
from support.tokenizer_texts import PIECES, imported, texts
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CodeGenTokenizer,
    CohereTokenizer,
    GPTNeoXTokenizer,
    Qwen3_5Tokenizer,
)

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.gguf.pre_tokenizers import CUTS, OF_MODELS
from firp.export.sources.gguf.vocabulary import Vocabulary
from firp.export.sources.open import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool>", "</tool>")
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPELL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = SPELL | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern, behavior="Isolated"):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": behavior == "Removed",  # what matches is what stays
    }


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


KIMI = (
    r"[\p{Han}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# What the tokenizer of each family's own models says: its tokenizer.json, or its code
ORIGINAL = {
    "gpt-2": [GPT2],
    "smollm": [DIGITS, GPT2],
    "starcoder": [DIGITS, GPT2],
    "refact": [DIGITS, GPT2],
    "llama-bpe": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}")), SPELL],
    "llama3": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}")), SPELL],
    "llama-v3": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}")), SPELL],
    "qwen2": [split(_ENDINGS + _WORDS.replace("DIGITS", "")), SPELL],
    "tekken": [
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        SPELL,
    ],
    "midm-2.0": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}"), "Removed"), SPELL],
    "stablelm2": [split(_ENDINGS + _WORDS.replace("DIGITS", "")), SPELL],
    "hunyuan": [split(_ENDINGS + _WORDS.replace("DIGITS", "")), SPELL],
    "kimi-k2": [split(KIMI), SPELL],
    "gpt-4o": [split(O200K), SPELL],
    "llama4": [split(O200K), SPELL],
    "minimax-m2": [split(O200K, "Removed"), SPELL],
    "glm4": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}")), SPELL],
    "chatglm-bpe": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}")), SPELL],
    "dbrx": [split(_ENDINGS + _WORDS.replace("DIGITS", "{1,3}"), "Removed"), SPELL],
    "deepseek-r1-qwen": [split(_ENDINGS + _WORDS.replace("DIGITS", "")), SPELL],
    "deepseek-v3": [
        *map(split, [
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ]),
        SPELL,
    ],
    "bloom": [split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), SPELL],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        GPT2,
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ],
    "exaone": [DIGITS, GPT2],
    "deepseek-coder": [
        *map(split, ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+"]), DIGITS, SPELL
    ],
}  # fmt: skip
# Families that have a class of their own in transformers, which says the same and more
CLASSES = {
    "phi-2": CodeGenTokenizer,
    "mpt": GPTNeoXTokenizer,
    "olmo": GPTNeoXTokenizer,
    "command-r": CohereTokenizer,
    "qwen35": Qwen3_5Tokenizer,
}
_COMPOSED = ("qwen2", "deepseek-r1-qwen", "minimax-m2", "stablelm2", "hunyuan")
NORMALIZER = {key: {"type": "NFC"} for key in _COMPOSED}
NORMALIZER["exaone"] = {"type": "NFKC"}
IGNORES_MERGES = (
    *("llama-bpe", "llama3", "llama-v3", "midm-2.0", "tekken", "gpt-4o", "llama4", "glm4"),
    *("chatglm-bpe", "hunyuan", "kimi-k2"),  # whose code is tiktoken, which looks a whole piece up first
)


def trained(pre):
    """A tokenizer as a family's own tokenizer.json is built, learned from the pieces."""
    if pre in CLASSES:
        theirs = CLASSES[pre]().backend_tokenizer
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.normalizer = theirs.pre_tokenizer, theirs.normalizer
    else:
        state = json.loads(Tokenizer(models.BPE(ignore_merges=pre in IGNORES_MERGES)).to_str())
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": ORIGINAL[pre]}
        state["normalizer"] = NORMALIZER.get(pre)
        tokenizer = Tokenizer.from_str(json.dumps(state))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=list(CONTROL), show_progress=False
    )
    tokenizer.train_from_iterator(PIECES * 2, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("pre", [*ORIGINAL, *CLASSES])
def test_byte_level_ids_are_those_of_the_original(pre, tmp_path):
    original = trained(pre)
    metadata = tokenizer_metadata(original, "gpt2", pre, add_bos_token=False)
    _, found = imported(tmp_path, metadata)
    for text in texts():
        assert found.encode(text).ids == original.encode(text).ids, text
    ids = [id for text in texts(50) for id in original.encode(text).ids]
    assert found.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)


def test_every_way_to_cut_has_an_original():
    """But DeepSeek's list of alphabets, which is its own definition: here are its pieces. The last
    pattern cuts Greek with accents out again, as everything from U+0800 to U+4E00.
    """
    assert OF_MODELS.keys() - ORIGINAL.keys() - CLASSES.keys() == {"deepseek-llm"}
    pieces = CUTS["deepseek-llm"].pre_tokenizer.pre_tokenize_str("Ab Привет ὕδωρ，123 你好abc\n x")
    expected = ["Ab", " Привет", " ", "ὕ", "δωρ", "，", "1", "2", "3", " ", "你好", "abc", "\n", " x"]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert [piece for piece, _ in pieces] == [spell.pre_tokenize_str(text)[0][0] for text in expected]


def test_the_ways_to_cut_differ():
    """On these texts: else a wrong one would pass for right."""
    names = (
        *("gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "deepseek-llm", "deepseek-coder"),
        *("mpt", "command-r", "exaone", "minimax-m2"),  # whose texts are normalized
        *("gpt-4o", "deepseek-v3", "bloom", "falcon"),
    )

    def pieces(cut, text):
        text = cut.normalizer.normalize_str(text) if cut.normalizer else text
        return cut.pre_tokenizer.pre_tokenize_str(text)

    found = {str([pieces(CUTS[pre], text) for text in PIECES]) for pre in names}
    assert len(found) == len(names)


@pytest.mark.parametrize(
    ("pre", "flag", "begins"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_texts_begin_with_bos_where_hugging_face_puts_it(pre, flag, begins, tmp_path):
    original = trained(pre)
    flags = {} if flag is None else {"add_bos_token": flag}
    metadata = tokenizer_metadata(original, "gpt2", pre, bos_token_id=1, eos_token_id=2, **flags)
    files, found = imported(tmp_path, metadata)
    assert (found.encode("a b").ids[0] == 1) == begins
    assert found.encode("a b", add_special_tokens=False).ids == original.encode("a b").ids
    assert json.loads(files["tokenizer_config.json"])["add_bos_token"] == begins


def test_a_bundle_holds_tokenizer_and_chat_template(tmp_path):
    original = trained("smollm")
    template = "{% for m in messages %}{{ bos_token + m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    metadata = tokenizer_metadata(
        original, "gpt2", "smollm", bos_token_id=1, eos_token_id=2, padding_token_id=2, add_bos_token=False
    )
    size = len(metadata["tokenizer.ggml.tokens"])
    model = make_model(tmp_path / "model", "llama", changes={"vocab_size": size, **WIDE})
    write_gguf(tmp_path / "model.gguf", model, "Q8_0", metadata | {"tokenizer.chat_template": template})
    export_bundle(ExportOptions(tmp_path / "model.gguf", tmp_path / "bundle"))
    theirs, engine = AutoTokenizer.from_pretrained(tmp_path / "bundle"), Engine.load(tmp_path / "bundle")
    for text in texts(60):
        assert theirs(text)["input_ids"] == original.encode(text).ids == engine.tokenizer.encode(text).ids
    messages = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "<|im_start|>user: hi<|im_end|>"
    assert (theirs.bos_token, theirs.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert theirs.pad_token == "<|im_end|>"
    assert engine.bundle.eos_token_ids == (2, 0)  # and <|endoftext|>, by its text


def test_padding_tokens_of_the_converter_are_no_tokens(tmp_path):
    original = trained("qwen2")
    metadata = tokenizer_metadata(original, "gpt2", "qwen2")
    size = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += [f"[PAD{size}]", f"[PAD{size + 1}]"]
    metadata["tokenizer.ggml.token_type"] += [5, 5]
    _, found = imported(tmp_path, metadata)
    assert found.get_vocab_size() == size
    assert found.encode(f"[PAD{size}]").ids == original.encode(f"[PAD{size}]").ids


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({"eos_token_id": 0}, (0, 2)),
        ({"eos_token_id": 2}, (2, 0)),
        ({"eos_token_id": 5, "eot_token_id": 6, "eom_token_id": 7}, (5, 6, 7, 0, 2)),
        ({}, (0, 2)),
    ],
)
def test_ends_of_a_text_and_of_a_turn(keys, ends, tmp_path):
    metadata = tokenizer_metadata(trained("gpt-2"), "gpt2", "gpt-2", **keys)
    assert Vocabulary.read(tmp_path / "x.gguf", metadata).ends() == ends


def test_a_message_of_gpt_oss_is_not_the_last(tmp_path):
    """The model thinks in one, which "<|end|>" ends, before the answer in another."""
    tokens = ["a", "<|end|>", "<|return|>", "<|call|>"]
    ggml = {"model": "gpt2", "pre": "gpt-4o", "tokens": tokens, "token_type": [1, 3, 3, 3], "eos_token_id": 2}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in ggml.items()}
    assert Vocabulary.read(tmp_path / "x.gguf", metadata).ends() == (2, 3)
    metadata["tokenizer.ggml.tokens"] = ["a", "<|end|>", "b", "c"]  # Phi 3's, which ends a turn
    assert Vocabulary.read(tmp_path / "x.gguf", metadata).ends() == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "default"}, "unsupported pre-tokenizer.*'default'.*expected one of 73 names"),
        ({"pre": "jina-v2-code"}, "unsupported pre-tokenizer.*'jina-v2-code'.*docs/gguf.md: gpt-2.*viking"),
        ({"pre": None}, "unsupported pre-tokenizer.*None"),
        ({"model": "rwkv"}, "unsupported tokenizer model.*'rwkv'.*gpt2, llama"),
        ({"model": "bert"}, "unsupported tokenizer model.*'bert'"),
        ({"model": 5}, "bad tokenizer.ggml.model"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["a b c"]}, "bad tokenizer.ggml.merges.*a b c"),
        ({"merges": ["nothing here"]}, "makes no tokenizer"),
        ({"tokens": ["a", "a"]}, "bad tokenizer.ggml.tokens.*got 2 with 1 different"),
        ({"tokens": None}, "bad tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "bad tokenizer.ggml.tokens"),
        ({"token_type": [1, 1]}, "bad tokenizer.ggml.token_type.*got 2 for"),
        ({"eos_token_id": 100_000}, "bad tokenizer.ggml.eos_token_id.*100000"),
        ({"add_bos_token": True, "bos_token_id": None}, "no bos_token_id or eos_token_id to add"),
        ({"model": "llama", "merges": None}, "scores that order no merges"),
    ],
)
def test_what_makes_no_exact_tokenizer_is_refused(changes, message, tmp_path):
    metadata = tokenizer_metadata(trained("gpt-2"), "gpt2", "gpt-2", **changes)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(CheckpointError) as caught:
        imported(tmp_path, metadata)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_file_without_a_tokenizer_has_none(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    write_gguf(tmp_path / "model.gguf", model, changes={"tokenizer.ggml.model": "none"})
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.tokenizer() is None
    assert checkpoint.eos_token_ids == ()
