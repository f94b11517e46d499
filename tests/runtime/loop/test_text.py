"""Streaming text and prompt files."""

import random
import time
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from firp.runtime.errors import BundleError, PromptError
from firp.runtime.loop import text as text_module
from firp.runtime.loop.text import TextStream, check_text, encode_text, load_tokenizer


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token a byte: every character beyond ASCII spans several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TEXT = "naïve 🙂 日本語 – “quoted” STOP and more 👩‍👩‍👧 end"


def stream(tokenizer, ids, stop=()):
    text = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text.stopped


def test_pieces_are_whole_characters_and_add_up(byte_tokenizer):
    pieces, stopped = stream(byte_tokenizer, byte_tokenizer.encode(TEXT).ids)
    assert "".join(pieces) == TEXT
    assert not stopped
    assert all("�" not in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 20  # it streams


def test_an_unfinished_character_comes_out_at_the_end(byte_tokenizer):
    ids = byte_tokenizer.encode("ab🙂").ids[:-1]
    pieces, _ = stream(byte_tokenizer, ids)
    assert "".join(pieces[:-1]) == "ab"
    assert set(pieces[-1]) == {"�"}


@pytest.mark.parametrize(
    "stop", [("STOP",), ("STOP", "“"), ("zzz", "P a"), ("日本語 – ",), ("n",), (TEXT[-3:],)]
)
def test_text_ends_right_before_the_first_stop_string(byte_tokenizer, stop):
    pieces, stopped = stream(byte_tokenizer, byte_tokenizer.encode(TEXT).ids, stop)
    assert stopped
    assert "".join(pieces) == TEXT[: min(TEXT.find(s) for s in stop if s in TEXT)]


def test_what_only_begins_like_a_stop_string_is_released(byte_tokenizer):
    pieces, stopped = stream(byte_tokenizer, byte_tokenizer.encode("a STOX STO").ids, ("STOP",))
    assert "".join(pieces) == "a STOX STO"
    assert not stopped
    assert pieces[-1] == "STO"


def test_held_text_is_never_released_too_early(byte_tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("abé") for _ in range(rng.randrange(1, 15)))
        stop = tuple("".join(rng.choice("abé") for _ in range(rng.randrange(1, 4))) for _ in range(2))
        pieces, stopped = stream(byte_tokenizer, byte_tokenizer.encode(text).ids, stop)
        # the stop string that is complete first ends the text, at its own beginning
        ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
        if not ends:
            assert ("".join(pieces), stopped) == (text, False)
        else:
            first = min(end for end, _ in ends)
            assert stopped
            assert "".join(pieces) == text[: min(begin for end, begin in ends if end == first)]


@pytest.fixture(scope="module")
def word_tokenizer():
    """As Llama 2's: words carry their space, and the decoder strips the first one."""
    words = ["<s>", "</s>", "▁Hello", "▁world", "▁again", "!", "▁a", "▁b"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="!"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def test_text_continues_the_prompt_with_its_space(word_tokenizer):
    text = TextStream(word_tokenizer, prompt=[0, 2])
    assert [text.push(3), text.push(5), text.push(4)] == [" world", "!", " again"]
    assert TextStream(word_tokenizer, prompt=[0]).push(3) == "world"  # nothing before it


def test_a_special_token_in_the_middle_takes_no_space_away(word_tokenizer):
    text = TextStream(word_tokenizer, prompt=[0])
    assert [text.push(6), text.push(1), text.push(7)] == ["a", "", " b"]


def test_a_stop_string_ends_the_text_though_a_character_is_unfinished():
    # STOP and the first byte of an emoji
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "STOPð": 1}, unk_token="x"))
    tokenizer.decoder = decoders.ByteLevel()
    text = TextStream(tokenizer, ("STOP",))
    assert [text.push(0), text.push(1)] == ["x", ""]
    assert text.stopped


def test_saved_truncation_and_padding_are_off(byte_tokenizer, tmp_path):
    other = Tokenizer.from_str(byte_tokenizer.to_str())
    other.enable_truncation(4)
    other.enable_padding(length=16)
    other.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path / "tokenizer.json").encode("abcdefghij").ids) == 10


def test_lone_surrogates_are_refused():
    assert check_text("é🙂") == "é🙂"
    with pytest.raises(PromptError, match="lone surrogate at character 1"):
        check_text("a\ud800")


@pytest.fixture(scope="module")
def panicking_tokenizer():
    """Its regular expression gives up on x…x!, which tokenizers answers with a Rust panic."""
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "a": 1}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(x+x+)+y"), "isolated")
    return tokenizer


def test_a_panic_of_the_tokenizer_is_one_line(panicking_tokenizer):
    assert encode_text(panicking_tokenizer, "a") == [1]
    with pytest.raises(PromptError, match="the tokenizer fails on this prompt.*retry-limit") as caught:
        encode_text(panicking_tokenizer, "x" * 60 + "!")
    assert "\n" not in str(caught.value)


class Panic(BaseException):
    """As pyo3's PanicException, no Exception."""


class Failing:
    """A tokenizer whose every call raises."""

    def __init__(self, error):
        self.error = error

    def encode_batch_fast(self, _, add_special_tokens):
        raise self.error

    def decode(self, _, skip_special_tokens):
        raise self.error

    def get_added_tokens_decoder(self):
        return {}


def test_a_panic_while_decoding_is_one_line():
    with pytest.raises(BundleError, match="the tokenizer does not decode.*index out of bounds"):
        TextStream(Failing(Panic("index out of bounds")), prompt=[1])


def test_a_panic_while_loading_is_one_line(tmp_path, monkeypatch):
    def from_buffer(_):
        raise Panic("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(text_module, "Tokenizer", SimpleNamespace(from_buffer=from_buffer))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer does not load.*tokenizer.json.*unwrap"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_tokenizer_stays_one(error):
    with pytest.raises(error):
        encode_text(Failing(error()), "x")


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0
        self.id_to_token, self.get_added_tokens_decoder = (
            tokenizer.id_to_token, tokenizer.get_added_tokens_decoder,
        )  # fmt: skip

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **options)


def decoded_tokens(tokenizer, ids):
    counting = Counting(tokenizer)
    pieces, _ = stream(counting, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    return counting.decoded


def test_text_that_completes_no_character_costs_linear_time(byte_tokenizer):
    ids = byte_tokenizer.encode("ab").ids + [byte_tokenizer.token_to_id("Ģ")] * 2000  # byte 0x80
    assert decoded_tokens(byte_tokenizer, ids) < 400 * len(ids)


def test_broken_characters_come_out_as_one_decode_has_them(byte_tokenizer):
    """Beginnings and ends of characters at random, for longer than any text is held back."""
    rng = random.Random(1)
    broken = [byte_tokenizer.encode("🙂").ids[i] for i in range(4)]
    for _ in range(20):
        ids = [rng.choice(broken) for _ in range(300)] + byte_tokenizer.encode("é!").ids
        pieces, _ = stream(byte_tokenizer, ids)
        assert "".join(pieces) == byte_tokenizer.decode(ids)
        assert max(map(len, pieces)) <= 70


def test_special_tokens_alone_cost_nothing(word_tokenizer):
    assert decoded_tokens(word_tokenizer, [2, *[1] * 2000, 3]) < 40


def test_unknown_ids_are_no_text(word_tokenizer):
    text = TextStream(word_tokenizer, prompt=[0])
    assert [text.push(6), text.push(500), text.push(7)] == ["a", "", " b"]


def test_a_long_stop_string_is_compared_with_what_can_match(byte_tokenizer):
    """A stop string of a million characters took seconds a token."""
    ids = byte_tokenizer.encode("ab" * 50 + "aac").ids
    started = time.process_time()
    pieces, stopped = stream(byte_tokenizer, ids, ("aa" + "b" * 1_000_000,))
    assert time.process_time() - started < 5
    assert ("".join(pieces), stopped) == ("ab" * 50 + "aac", False)
