"""Text around the token loop: prompts in, streamed text out, stop strings.

In: prompt text or files; token ids one at a time. Out: token ids; text that never holds half a character or a stop string.
"""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from firp.runtime.errors import BundleError, PromptError

_UNFINISHED = "�"  # what a tokenizer decodes an incomplete UTF-8 sequence to


class Prompt(NamedTuple):
    """One line of a prompt file; exactly one of `text` and `input_ids` is set."""

    id: str
    text: str | None = None
    input_ids: list[int] | None = None


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts of a JSON-lines file: {"prompt": str} or {"input_ids": [int]} a line, optional "id" (default: the line number).

    Raises PromptError naming the line. Blank lines are skipped.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise PromptError("cannot read prompt file", got=f"'{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError("prompt file is not UTF-8", got=f"'{path}': {error.reason} at byte {error.start}") from error
    prompts = [_parse_prompt(line, f"{path} line {number}", str(number)) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptError("no prompts in file", got=f"'{path}'", expected='one {"prompt": "..."} a line')
    return prompts


def _parse_prompt(line: str, where: str, default_id: str) -> Prompt:
    expected = '{"prompt": str} or {"input_ids": [int, ...]}, optional "id"'
    try:
        data = json.loads(line)
    except ValueError as error:
        raise PromptError(f"malformed prompt at {where}", got=str(error), expected=expected) from error
    if not isinstance(data, dict) or len({"prompt", "input_ids"} & set(data)) != 1:
        raise PromptError(f"malformed prompt at {where}", got=line[:60], expected=expected)
    text, ids = data.get("prompt"), data.get("input_ids")
    if "prompt" in data and not isinstance(text, str):
        raise PromptError(f"malformed prompt at {where}", got=f"prompt {text!r:.40}", expected="a string")
    if "input_ids" in data and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise PromptError(f"malformed prompt at {where}", got=f"input_ids {ids!r:.40}", expected="a list of integers")
    if text == "" or ids == []:
        raise PromptError(f"empty prompt at {where}", expected="at least one token")
    return Prompt(str(data.get("id", default_id)), text, ids)


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises BundleError when the file is no tokenizer."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError("tokenizer does not load", got=f"'{path}': {error}") from error


class TextStream:
    """Decodes tokens one at a time; `push` returns the text that is certain by now, `finish` the rest.

    A token can end inside a UTF-8 sequence, and a stop string can begin in one token and end in another: text that may still
    change is held back. Once a stop string is complete, `stopped` is true and the text ends right before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._prefix = self._read = 0  # decoding starts at token `prefix`; text up to token `read` is out
        self._held = ""  # decoded, but maybe the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._prefix, len(self._ids))
        if text.endswith(_UNFINISHED):
            return ""
        return self._release(text)

    def finish(self) -> str:
        """What is still held back; an incomplete character comes out as U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decode(self._prefix, len(self._ids)))
        text, self._held = text + self._held, ""
        return text

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)

    def _release(self, text: str) -> str:
        """`text` is that of tokens [prefix, end); the part before `read` was released before."""
        fresh = text[len(self._decode(self._prefix, self._read)) :]
        self._prefix, self._read = self._read, len(self._ids)
        self._held += fresh
        found = min((at for stop in self._stop if (at := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped = True
            released, self._held = self._held[:found], ""
            return released
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(released) :]
        return released
