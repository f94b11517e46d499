"""A conversation goes on from a file as if nothing had happened, or not at all."""

import pytest
from support.chat_bundles import small_chat_bundle

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams

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


def test_turns_are_taken_back(bundles):
    conversation = Engine.load(bundles[0], threads=1).conversation(PARAMS, "Be brief.")
    answer(conversation, TEXT)
    messages, expected = list(conversation.messages), answer(conversation, "and then?")
    conversation.rewind()
    assert conversation.messages == messages
    assert answer(conversation, "and then?") == expected
    conversation.rewind(2)
    assert conversation.messages == messages[:1]
    with pytest.raises(FirpError, match="bad turns"):
        conversation.rewind(0)
