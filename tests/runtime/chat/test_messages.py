"""Messages: what is taken, and one line for what is not."""

import pytest

from firp.runtime.chat.messages import Messages, check_messages, is_messages
from firp.runtime.errors import PromptError

USER = {"role": "user", "content": "hi"}


def test_roles_parts_and_tool_calls_are_taken_and_none_is_left_out():
    messages = [
        {"role": "system", "content": ""},
        {"role": "developer", "content": "x", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "y", "tool_call_id": "1"},
    ]
    checked = check_messages(tuple(messages))
    assert checked[1] == {"role": "developer", "content": "x"}
    assert checked[3] == {"role": "assistant", "tool_calls": [{}]}
    assert checked[4] == messages[4]


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ("text", "bad messages"),
        (5, "bad messages"),
        ([], "no messages"),
        ([USER, "text"], "bad message 2"),
        ([USER, {"role": "wizard", "content": "x"}], "unknown role of message 2 .*'wizard'.*assistant"),
        ([{"content": "x"}], "unknown role of message 1"),
        ([{"role": ["user"], "content": "x"}], "unknown role of message 1"),
        ([USER, USER, {"role": "assistant"}], "message 3 has no content"),
        ([{"role": "assistant", "tool_calls": []}], "message 1 has no content"),
        ([{"role": "user", "content": 5}], "bad content of message 1"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "bad content of message 1"),
        ([{"role": "user", "content": ["x"]}], "bad content of message 1"),
    ],
)
def test_others_are_refused_with_their_number(messages, line):
    with pytest.raises(PromptError, match=line):
        check_messages(messages)


def test_messages_are_told_from_token_ids_and_text():
    assert is_messages([USER])
    assert not any(map(is_messages, ("text", [5, 6], [], ())))


def test_variables_stay_with_their_messages():
    messages = check_messages([USER], {"enable_thinking": False, "mode": "short"})
    assert messages == [USER] and is_messages(messages)
    again = check_messages(messages, {"mode": "long"})
    assert again.variables == {"enable_thinking": False, "mode": "long"}
    assert check_messages([USER]).variables == Messages([USER]).variables == {}


@pytest.mark.parametrize("variables", [[], "x", {1: 2}, {"tools": []}, {"add_generation_prompt": False}])
def test_variables_that_are_none(variables):
    with pytest.raises(PromptError, match="bad chat_template_kwargs"):
        check_messages([USER], variables)
