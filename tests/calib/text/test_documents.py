"""Calibration data: what is read, how it is cut, and what is refused."""

import json

import numpy as np
import pytest

from firp.calib.text.documents import load_documents, make_dataset, split_prompts
from firp.calib.text.tokens import encode_prompts
from firp.export.sources.open import open_checkpoint
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.errors import FirpError
from firp.runtime.loop.text import load_tokenizer


@pytest.fixture
def demo(pytestconfig):
    return pytestconfig.rootpath / "tests" / "demo_model"


@pytest.fixture
def read(demo):
    tokenizer = load_tokenizer(demo / "tokenizer.json")

    def load(*paths, model=demo):
        chat = ChatTemplate.from_files(open_checkpoint(model).companion)
        documents = load_documents(list(paths), tokenizer, chat)
        return [tokenizer.decode(ids) for ids in documents]

    return load


def test_held_out_windows_are_the_end_and_never_trained_on():
    documents = [list(range(start, start + 500)) for start in range(0, 5000, 500)]
    dataset = make_dataset(documents, window=64, separator=9999)
    stream = [token for ids in documents for token in [*ids, 9999]]
    windows = np.concatenate([dataset.training, dataset.held_out])
    assert windows.ravel().tolist() == stream[: windows.size]
    assert len(stream) - windows.size < 64
    assert len(dataset.held_out) == round(len(windows) * 0.05)
    assert dataset.tokens == len(stream)


def test_files_lines_and_directories(read, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b" / "c.jsonl").write_text('{"text": "second\\u2028line"}\n\n{"text": "third"}\n')
    (tmp_path / "b" / "d.py").write_text("fourth")
    (tmp_path / "b" / ".hidden").write_text("never")
    (tmp_path / "b" / "image.bin").write_bytes(b"\xff\xd8\xff")
    assert read(tmp_path / "a.txt", tmp_path / "b") == ["first", "second\u2028line", "third", "fourth"]


def test_messages_go_through_the_chat_template(read, demo, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (model / name).symlink_to(demo / name)
    lines = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(FirpError, match="no chat template.*line 1"):
        read(tmp_path / "chat.jsonl", model=model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    )
    assert read(tmp_path / "chat.jsonl", model=model) == ["<user>hi\n<assistant>ho\n"]
    (model / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(FirpError, match="refuses these messages at line 1.*roles must alternate"):
        read(tmp_path / "chat.jsonl", model=model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe" * 400, "not text.*byte 0"),
        ("a.txt", None, "cannot read calibration data"),
        ("a.jsonl", b"{", "not JSON.*line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "no text in calibration data.*line 2.*messages"),
        ("a.jsonl", b'{"text": 5}', "no text in calibration data"),
        ("a.jsonl", b"[" * 100000, "not JSON.*line 1"),
    ],
)
def test_what_is_not_text_is_refused(read, name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FirpError, match=message):
        read(tmp_path / name)


def test_a_directory_without_text_is_refused(read, tmp_path):
    (tmp_path / "image.bin").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(FirpError, match="no calibration data.*without a text file"):
        read(tmp_path)


@pytest.mark.parametrize("documents", [[], [[]], [[1] * 100]])
def test_too_little_data_says_how_much_is_needed(documents):
    with pytest.raises(FirpError, match="too little calibration data.*at least 128"):
        make_dataset(documents, window=64, separator=0)


def test_own_text_of_held_out_prompts_is_held_out_and_no_prompt_is_in_both():
    prompts = [[number] * 5 for number in range(40)] * 3 + [[]]
    training, held_out = split_prompts(prompts)
    assert len(training) == 38
    assert len(held_out) == 2
    assert set(map(tuple, training)).isdisjoint(map(tuple, held_out))
    own_text = [ids * 20 for ids in training], [ids * 20 for ids in held_out]
    dataset = make_dataset([list(range(100, 1000))], 50, None, own_text)
    assert set(dataset.held_out.ravel()) == {38, 39, *range(950, 1000)}
    assert {38, 39, *range(950, 1000)}.isdisjoint(dataset.training.ravel())
    with pytest.raises(FirpError, match="too few prompts.*1 different"):
        split_prompts([[1, 2], [1, 2]])


def test_half_a_surrogate_pair_is_refused(read, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}')
    with pytest.raises(FirpError, match="lone surrogate"):
        read(tmp_path / "a.jsonl")


def test_prompts_with_messages_end_with_what_begins_an_answer(demo):
    tokenizer = load_tokenizer(demo / "tokenizer.json")
    chat = ChatTemplate(
        "<|endoftext|>{{ messages[0].content }}{% if add_generation_prompt %}{{ '\\n>' }}{% endif %}"
    )
    messages = [{"role": "user", "content": "hi"}]
    text, ids, answer = encode_prompts(["hi", [5, 6], messages], tokenizer, chat)
    assert (text, ids) == (tokenizer.encode("hi").ids, [5, 6])
    assert answer == [0, *tokenizer.encode("hi\n>", add_special_tokens=False).ids]
    with pytest.raises(FirpError, match="no chat template"):
        encode_prompts([messages], tokenizer, None)
