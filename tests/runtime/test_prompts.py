"""Prompt files: what they hold, and what is wrong with them, line by line."""

import json

import pytest

from firp.runtime.errors import PromptError
from firp.runtime.prompts import read_prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}\n', r"line 2.*prompt 3.*expected a string"),
        ('{"prompt": "a"}\n\n{oops\n', "line 3"),
        ('{"input_ids": [1, "x"]}\n', r"line 1.*list of integers"),
        ('{"input_ids": [true]}\n', r"line 1.*list of integers"),
        ('{"prompt": "a", "input_ids": [1]}\n', "line 1"),
        ('{"text": "a"}\n', "line 1"),
        ("[1, 2]\n", "line 1"),
        ('{"prompt": ""}\n', "empty prompt at .* line 1"),
        ('{"input_ids": []}\n', "empty prompt at .* line 1"),
        ('{"messages": []}\n', "no messages at .* line 1"),
        ('{"messages": "hi"}\n', "bad messages at .* line 1"),
        ('{"messages": [{"role": "x", "content": "y"}]}\n', "unknown role of message 1 at .* line 1.*system"),
        (
            '{"prompt": "a", "messages": [{"role": "user", "content": "y"}]}\n',
            "malformed prompt at .* line 1",
        ),
        ("[" * 100_000, "malformed prompt at .* line 1"),
        ("\n\n", "no prompts"),
    ],
)
def test_malformed_prompt_files_name_the_line(tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        read_prompts(file)
    assert "\n" not in str(caught.value)


def test_unreadable_prompt_files(tmp_path):
    with pytest.raises(PromptError, match="cannot read prompt file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="not UTF-8"):
        read_prompts(tmp_path / "binary.jsonl")


def test_prompts_keep_their_ids(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b", "id": "x"}\r\n\r\n{"input_ids": [1, 2]}\n')
    assert [(p.id, p.text, p.input_ids) for p in read_prompts(file)] == [
        ("x", "a\u2028b", None),
        ("3", None, [1, 2]),
    ]


def test_messages_are_prompts_and_a_text_may_become_one(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"prompt": "b"}\n{"input_ids": [5]}\n')
    prompts = read_prompts(file)
    assert [prompt.content for prompt in prompts] == [[{"role": "user", "content": "a"}], "b", [5]]
    assert [prompt.as_chat().content for prompt in prompts] == [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "b"}],
        [5],
    ]
    assert [prompt.as_chat().id for prompt in prompts] == ["1", "2", "3"]


def test_a_line_has_variables_of_its_template_and_others_may_be_added(tmp_path):
    file = tmp_path / "prompts.jsonl"
    line = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": 1}}
    file.write_text(json.dumps(line) + '\n{"prompt": "b"}\n')
    chat, text = [prompt.with_variables({"a": 2, "b": 3}) for prompt in read_prompts(file)]
    assert chat.content.variables == {"a": 1, "b": 3}
    assert text.content == "b"
