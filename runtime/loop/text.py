"""Text around the token loop: prompts in, streamed text out, stop strings.

In: prompt text or files; token ids one at a time. Out: token ids; text that never holds half a
character or a stop string.
"""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from firp.runtime.errors import BundleError, PromptError

_UNFINISHED = "�"  # what a tokenizer decodes an incomplete UTF-8 sequence to
_CONTEXT_TOKENS = 8  # of the prompt, decoded before the first new token


class Prompt(NamedTuple):
    """One line of a prompt file; exactly one of `text` and `input_ids` is set."""

    id: str
    text: str | None = None
    input_ids: list[int] | None = None


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


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises BundleError when the file is no tokenizer."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError("tokenizer does not load", got=f"'{path}': {error}") from error
    tokenizer.no_truncation()  # what the file was saved with would cut prompts silently
    tokenizer.no_padding()
    return tokenizer


def check_text(text: str) -> str:
    """Raises PromptError for text that no tokenizer takes: half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            "prompt is not Unicode text", got=f"a lone surrogate at character {error.start}"
        ) from error
    return text


class TextStream:
    """Decodes tokens one at a time; `push` returns the text that is certain by now, `finish` the
    rest.

    The text is what the tokens add to that of the prompt, so that prompt and text join as the
    tokenizer would join them. A token can end inside a UTF-8 sequence, and a stop string can begin
    in one token and end in another: text that may still change is held back. Once a stop string is
    complete, `stopped` is true and the text ends right before it. Special tokens are no text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), prompt: list[int] | None = None):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids = list((prompt or [])[-_CONTEXT_TOKENS:])
        # decoding starts at token `prefix`; text up to token `read` is out
        self._prefix, self._read = 0, len(self._ids)
        if self._decode(self._read).endswith(_UNFINISHED):  # the prompt ends inside a character
            self._prefix = self._read
        self._held = ""  # decoded, but maybe the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(len(self._ids))
        fresh = text[len(self._decode(self._read)) :]
        if not text.endswith(_UNFINISHED):
            if fresh:  # a token without text, such as a special one, must not lose the space of the next
                self._prefix, self._read = self._read, len(self._ids)
            return self._release(fresh)
        certain = fresh.rstrip(_UNFINISHED)
        return self._release(certain) if self._find_stop(self._held + certain) is not None else ""

    def finish(self) -> str:
        """What is still held back; an incomplete character comes out as U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decode(len(self._ids))[len(self._decode(self._read)) :])
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(self._ids[self._prefix : end], skip_special_tokens=True)

    def _find_stop(self, text: str) -> int | None:
        return min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)

    def _release(self, fresh: str) -> str:
        """Add text; return what cannot be part of a stop string any more."""
        text = self._held + fresh
        found = self._find_stop(text)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
