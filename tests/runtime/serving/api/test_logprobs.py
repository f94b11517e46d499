"""Log-probabilities: tokens as bytes for each kind of vocabulary, and the objects of both endpoints."""

from types import SimpleNamespace

import pytest
from support.chat_bundles import small_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

from firp.runtime.loop.text import load_tokenizer
from firp.runtime.serving.api.logprobs import chat_logprobs, completion_logprobs
from firp.runtime.serving.api.token_text import TokenText

TEXT = "def f(x):\n\treturn 'é 世界' + \"🙂\"  # ¿?"


@pytest.fixture(scope="module")
def byte_level(pytestconfig):
    return load_tokenizer(pytestconfig.rootpath / "tests" / "demo_model" / "tokenizer.json")


def sentencepiece():
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "b", "é"]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def test_bytes_of_byte_level_tokens_join_to_the_text(byte_level):
    tokens = TokenText(byte_level)
    ids = byte_level.encode(TEXT, add_special_tokens=False).ids
    assert b"".join(map(tokens.bytes_of, ids)).decode() == TEXT
    special = next(i for i, token in byte_level.get_added_tokens_decoder().items() if token.special)
    assert tokens.text_of(special) == byte_level.id_to_token(special)
    assert tokens.bytes_of(10**6) == b""


def test_bytes_of_sentencepiece_tokens():
    tokens = TokenText(sentencepiece())
    assert [tokens.bytes_of(i) for i in (257, 258, 259, 1 + 0xE4, 0)] == [
        b" a",
        b"b",
        "é".encode(),
        b"\xe4",
        b"<s>",
    ]
    assert tokens.text_of(1 + 0xE4) == "\ufffd"


def test_objects_of_both_endpoints():
    tokens = TokenText(small_tokenizer())
    a, b = (small_tokenizer().token_to_id(character) for character in "ab")
    found = [
        SimpleNamespace(token_id=a, logprob=-0.5, top=[(a, -0.5), (b, -1.0)]),
        SimpleNamespace(token_id=b, logprob=float("-inf"), top=[(a, -0.1), (b, float("-inf"))]),
    ]
    chat = chat_logprobs(found, tokens)["content"]
    assert chat[0]["token"] == "a"
    assert chat[0]["bytes"] == [97]
    assert [one["token"] for one in chat[0]["top_logprobs"]] == ["a", "b"]
    assert chat[1]["logprob"] == -9999.0
    first = SimpleNamespace(token_id=b, logprob=None, top=())
    legacy = completion_logprobs([first, *found], tokens, top=1, offset=4)
    assert legacy["tokens"] == ["b", "a", "b"]
    assert legacy["token_logprobs"] == [None, -0.5, -9999.0]
    assert legacy["top_logprobs"] == [None, {"a": -0.5}, {"a": -0.1}]
    assert legacy["text_offset"] == [4, 5, 6]
    assert completion_logprobs(found, tokens, top=0)["top_logprobs"] is None
