"""Prompt files: one JSON object a line.

In: a file. Out: its `Prompt`s: text, token ids or messages; or one line that names the line that is
wrong.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from firp.runtime.chat.messages import Messages, check_messages
from firp.runtime.errors import PromptError

_KINDS = ("prompt", "input_ids", "messages")  # keys of which a line has one


class Prompt(NamedTuple):
    """One line of a prompt file; exactly one of `text`, `input_ids` and `messages` is set."""

    id: str
    text: str | None = None
    input_ids: list[int] | None = None
    messages: Messages | None = None

    @property
    def content(self) -> str | list[int] | Messages:
        """The text, the token ids or the messages."""
        return next(item for item in (self.text, self.input_ids, self.messages) if item is not None)

    def as_chat(self) -> "Prompt":
        """A text as what a user says; token ids and messages stay as they are."""
        if self.text is None:
            return self
        return Prompt(self.id, messages=check_messages([{"role": "user", "content": self.text}]))

    def with_variables(self, variables: Mapping[str, Any]) -> "Prompt":
        """Messages whose template may read these variables too, where they do not say otherwise;
        anything else as it is.
        """
        if self.messages is None:
            return self
        return Prompt(self.id, messages=Messages(self.messages, {**variables, **self.messages.variables}))


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts of a JSON-lines file: {"prompt": str}, {"input_ids": [int]} or {"messages": [{"role",
    "content"}]} a line, optional "id" (default: the line number) and, beside messages,
    "chat_template_kwargs".

    Raises PromptError naming the line. Blank lines are skipped.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")  # JSON strings may hold other line separators
    except OSError as error:
        raise PromptError("cannot read prompt file", got=f"'{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            "prompt file is not UTF-8", got=f"'{path}': {error.reason} at byte {error.start}"
        ) from error
    prompts = [
        _parse_prompt(line, f"{path} line {number}", str(number))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise PromptError("no prompts in file", got=f"'{path}'", expected='one {"prompt": "..."} a line')
    return prompts


def _parse_prompt(line: str, where: str, default_id: str) -> Prompt:
    expected = '{"prompt": str}, {"input_ids": [int, ...]} or {"messages": [...]}, optional "id"'
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"malformed prompt at {where}", got=f"{error!s:.80}", expected=expected) from error
    if not isinstance(data, dict) or len(set(_KINDS) & set(data)) != 1:
        raise PromptError(f"malformed prompt at {where}", got=line[:60], expected=expected)
    text, ids = data.get("prompt"), data.get("input_ids")
    if "prompt" in data and not isinstance(text, str):
        raise PromptError(f"malformed prompt at {where}", got=f"prompt {text!r:.40}", expected="a string")
    if "input_ids" in data and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise PromptError(
            f"malformed prompt at {where}", got=f"input_ids {ids!r:.40}", expected="a list of integers"
        )
    if "chat_template_kwargs" in data and "messages" not in data:
        raise PromptError(f"chat_template_kwargs without messages at {where}", expected="messages")
    if "messages" in data:
        try:
            checked = check_messages(data["messages"], data.get("chat_template_kwargs"))
            return Prompt(str(data.get("id", default_id)), messages=checked)
        except PromptError as error:
            raise PromptError(f"{error.what} at {where}", got=error.got, expected=error.expected) from error
    if text == "" or ids == []:
        raise PromptError(f"empty prompt at {where}", expected="at least one token")
    return Prompt(str(data.get("id", default_id)), text, ids)
