"""Prompt files: one JSON object a line.

In: a file. Out: its `Prompt`s, text or token ids, or one line that names the line that is wrong.
"""

import json
from pathlib import Path
from typing import NamedTuple

from firp.runtime.errors import PromptError


class Prompt(NamedTuple):
    """One line of a prompt file; exactly one of `text` and `input_ids` is set."""

    id: str
    text: str | None = None
    input_ids: list[int] | None = None

    @property
    def content(self) -> str | list[int]:
        """The text, or the token ids."""
        return self.input_ids if self.text is None else self.text


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts of a JSON-lines file: {"prompt": str} or {"input_ids": [int]} a line, optional "id"
    (default: the line number).

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
    expected = '{"prompt": str} or {"input_ids": [int, ...]}, optional "id"'
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"malformed prompt at {where}", got=f"{error!s:.80}", expected=expected) from error
    if not isinstance(data, dict) or len({"prompt", "input_ids"} & set(data)) != 1:
        raise PromptError(f"malformed prompt at {where}", got=line[:60], expected=expected)
    text, ids = data.get("prompt"), data.get("input_ids")
    if "prompt" in data and not isinstance(text, str):
        raise PromptError(f"malformed prompt at {where}", got=f"prompt {text!r:.40}", expected="a string")
    if "input_ids" in data and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise PromptError(
            f"malformed prompt at {where}", got=f"input_ids {ids!r:.40}", expected="a list of integers"
        )
    if text == "" or ids == []:
        raise PromptError(f"empty prompt at {where}", expected="at least one token")
    return Prompt(str(data.get("id", default_id)), text, ids)
