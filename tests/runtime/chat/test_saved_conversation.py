"""A conversation goes on from a file as if nothing had happened, or not at all."""

import json
import os
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.chat_bundles import small_chat_bundle

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling import prefix_file
from firp.runtime.scheduling.service import EngineOptions

PARAMS = SamplingParams(10, ignore_eos=True)
TEXT = "what was said before is long enough for a block of the cache"


@pytest.fixture(scope="module")
def bundles(family_bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return [small_chat_bundle(family_bundle(family)[1], root / family) for family in ("llama", "qwen3")]


def answer(conversation, text):
    return [token for chunk in conversation.send(text) for token in chunk.token_ids]


@pytest.fixture
def saved(bundles, tmp_path):
    """A file, and what the conversation says next."""
    conversation = Engine.load(bundles[0], threads=1).conversation(PARAMS, "Be brief.")
    answer(conversation, TEXT)
    path = tmp_path / "talk.session"
    conversation.save(path)
    return path, list(conversation.messages), answer(conversation, "and then?")


def test_a_saved_conversation_goes_on(bundles, saved):
    path, messages, expected = saved
    conversation = Engine.load(bundles[0], threads=1).conversation(PARAMS, saved=path)
    assert conversation.messages == messages
    assert answer(conversation, "and then?") == expected
    assert conversation.stats.reused_tokens >= 64


def test_a_restored_conversation_counts_the_turns_before(bundles, saved):
    path, messages, _ = saved
    engine = Engine.load(bundles[0], threads=1)
    conversation = engine.conversation(PARAMS, saved=path)
    assert (conversation.turns, conversation.tokens) == (1, len(engine.encode(messages)))
    assert conversation.stats.steps == 0  # costs are of what ran here
    *_, last = conversation.send("and then?")
    assert (conversation.turns, conversation.tokens) == (2, last.stats.prompt_tokens + 10)
    conversation.rewind()
    assert (conversation.turns, conversation.tokens) == (1, len(engine.encode(messages)))
    conversation.rewind()
    assert (conversation.turns, conversation.tokens) == (0, 0)


def test_a_restored_conversation_that_the_template_makes_longer_than_the_context_fills_it(bundles):
    engine = Engine.load(bundles[0], threads=1)
    conversation = engine.conversation(PARAMS)
    conversation.messages = [{"role": "user", "content": "x" * engine.context}]
    assert conversation.tokens == engine.context


def test_what_is_saved_appears_whole_or_not_at_all(bundles, saved, monkeypatch):
    path, *_ = saved
    before = path.read_bytes()
    conversation = Engine.load(bundles[0], threads=1).conversation(PARAMS)
    answer(conversation, TEXT)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("firp.runtime.scheduling.prefix_file.os.replace", full)
    with pytest.raises(FirpError, match="cannot write the session.*No space left on device"):
        conversation.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_takes_along_what_a_killed_process_left_but_not_what_is_being_written(bundles, saved):
    path, messages, _ = saved
    for name, age_s in (("dead", 7200), ("alive", 5)):
        part = path.with_name(f".{path.name}.partial-{name}")
        part.touch()
        os.utime(part, (time.time() - age_s,) * 2)
    Engine.load(bundles[0], threads=1).conversation(PARAMS, saved=path).save(path)
    assert {file.name for file in path.parent.iterdir()} == {path.name, f".{path.name}.partial-alive"}
    assert Engine.load(bundles[0], threads=1).conversation(PARAMS, saved=path).messages == messages


def test_another_bundle_and_damage_are_refused_in_one_line(bundles, saved):
    path, *_ = saved
    with pytest.raises(FirpError, match="session of another bundle"):
        Engine.load(bundles[1], threads=1).conversation(PARAMS, saved=path)
    engine = Engine.load(bundles[0], threads=1)
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(FirpError, match="damaged session|cannot read the session"):
            engine.conversation(PARAMS, saved=path)
    with pytest.raises(FirpError, match="cannot read the session"):
        engine.conversation(PARAMS, saved=path.with_name("missing"))
    os.mkfifo(path.with_name("pipe"))
    for name in (path.parent, path.with_name("pipe")):
        with pytest.raises(FirpError, match="cannot read the session.*expected a regular file"):
            engine.conversation(PARAMS, saved=name)


def none_of(values):
    return values[:0]


SAID = [{"role": "user", "content": "hi"}]
FORGED = {
    "a list": ("[]", none_of, "bad text . got \\[\\], expected tokens and notes"),
    "no JSON": ("{", none_of, "its text is not JSON"),
    "deep JSON": ("[" * 100_000, none_of, "its text is not JSON"),
    "no notes": ({"tokens": []}, none_of, "expected tokens and notes"),
    "tokens of no list": ({"tokens": 5, "notes": SAID}, none_of, "bad tokens . got 5, expected a list of 0"),
    "too few tokens": ({"tokens": [5], "notes": SAID}, None, "bad tokens .*expected a list of 64"),
    "text": ({"tokens": ["5"] * 64, "notes": SAID}, None, "bad token . got '5', expected 0 to"),
    "lists": ({"tokens": [[5]] * 64, "notes": SAID}, None, r"bad token . got \[5\]"),
    "truth": ({"tokens": [True] * 64, "notes": SAID}, None, "bad token . got True"),
    "no such token": ({"tokens": [10**6] * 64, "notes": SAID}, None, "bad token . got 1000000"),
    "a number said": ({"tokens": [], "notes": 5}, none_of, "bad messages . got 5"),
    "nothing said": ({"tokens": [], "notes": []}, none_of, "no messages"),
    "no content": ({"tokens": [], "notes": [{"role": "user"}]}, none_of, "message 1 has no content"),
    "NaN": ({"tokens": [5] * 64, "notes": SAID}, lambda values: values * np.nan, "not finite"),
    "doubles": ({"tokens": [5] * 64, "notes": SAID}, np.float64, "its digest does not fit"),
    "flat": ({"tokens": [5] * 64, "notes": SAID}, np.ravel, "blocks of shape"),
    "one number": ({"tokens": [], "notes": SAID}, lambda values: values.max(), "blocks of shape"),
    "too many blocks": ({"tokens": [], "notes": SAID}, lambda values: values.repeat(99, 0), "99 blocks"),
}


@pytest.mark.parametrize("name", FORGED)
def test_every_field_is_checked_though_the_digest_fits(name, bundles, saved):
    path, *_ = saved
    text, change, expected = FORGED[name]
    text = text if isinstance(text, str) else json.dumps(text)
    with safe_open(path, "numpy") as file:
        values, metadata = file.get_tensor("blocks")[:1], file.metadata()
    values = np.asarray(change(values) if change else values)
    digest = prefix_file._digest(text, values)
    save_file({"blocks": values}, path, {**metadata, "text": text, "sha256": digest})
    engine = Engine.load(bundles[0], threads=1, check_hashes=False)
    with pytest.raises(FirpError, match=f"damaged session . got .*{expected}.*Fix: begin a new one"):
        engine.conversation(PARAMS, saved=path)
    assert engine.stats().prefixes.bytes == 0


@pytest.mark.parametrize("prefix_bytes", [0, None])
def test_saving_says_what_it_saves_of_the_cache(prefix_bytes, bundles, tmp_path, caplog):
    options = EngineOptions(prefix_bytes=prefix_bytes)
    conversation = Engine.load(bundles[0], threads=1, options=options).conversation(PARAMS, "Be brief.")
    answer(conversation, TEXT)
    held = conversation.save(tmp_path / "talk.session")
    assert held == (0 if prefix_bytes == 0 else conversation.tokens // 64 * 64)
    assert ("nothing of the cache" in caplog.text) == (prefix_bytes == 0)
    again = Engine.load(bundles[0], threads=1).conversation(PARAMS, saved=tmp_path / "talk.session")
    assert answer(again, "and then?") == answer(conversation, "and then?")


def test_turns_are_taken_back(bundles):
    conversation = Engine.load(bundles[0], threads=1).conversation(PARAMS, "Be brief.")
    answer(conversation, TEXT)
    before, messages = conversation.tokens, list(conversation.messages)
    expected = answer(conversation, "and then?")
    tokens = conversation.tokens
    conversation.rewind()
    assert conversation.messages == messages
    assert (conversation.turns, conversation.tokens) == (1, before)
    assert answer(conversation, "and then?") == expected
    assert (conversation.turns, conversation.tokens) == (2, tokens)
    conversation.rewind(2)
    assert conversation.messages == messages[:1]
    assert (conversation.turns, conversation.tokens) == (0, 0)
    with pytest.raises(FirpError, match="bad turns"):
        conversation.rewind(0)
