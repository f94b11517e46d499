"""Reads calls of tools in an answer as it comes.

In: a family of models, names of functions, pieces of text. Out: text without calls, and `CallPiece`s:
the name of a call as soon as it is certain, then its arguments as the model writes them.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from firp.runtime.chat.tool_calls import ToolFamily

# an object that calls, up to its arguments
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_SEPARATORS = " \t\r\n;,]"  # between calls


class CallPiece(NamedTuple):
    """A part of a call."""

    number: int  # of the call in the answer, from 0
    name: str | None  # of the function, in the first part
    arguments: str = ""  # a part of the JSON object, as text


class ToolText(NamedTuple):
    """What a piece of an answer says, and what it calls."""

    text: str
    calls: list[CallPiece]


class ToolReader:
    """Takes calls out of an answer as it comes. functions: the names that may be called.

    What looks like a call, but is none, is text: nothing of an answer is lost. A call is certain once
    its arguments have begun after the name of a function; its arguments are whatever follows, up to
    the end of their object or of the answer.
    """

    def __init__(self, family: ToolFamily, functions: Iterable[str]):
        self._family = family
        self._functions = frozenset(functions)
        self._close = family.close.strip()
        self._state = self._between if family.open else self._beginning
        self._held = ""
        self._prefix = ""  # before what is held, read as the beginning of a call
        self._count = 0  # calls
        self._object = _Object()
        self._calling = False  # whether nothing was said since the last call
        self._blank = ""  # blanks since then
        self._text = ""
        self._calls: list[CallPiece] = []

    def push(self, text: str) -> ToolText:
        """Add text; return what is certain by now."""
        self._held += text
        while self._state():
            pass
        return self._certain()

    def finish(self) -> ToolText:
        """What is still held back: text, unless it stood inside a call."""
        if self._state in (self._between, self._beginning, self._head):
            self._say(self._prefix + self._held)
        self._held = self._prefix = ""
        return self._certain()

    def _certain(self) -> ToolText:
        found = ToolText(self._text, self._calls)
        self._text, self._calls = "", []
        return found

    def _say(self, text: str) -> None:
        """Add text; blanks that separate a call from the next, or from the end, are no text."""
        text = self._blank + text
        self._blank = text if self._calling and not text.strip() else ""
        if not self._blank and text:
            self._text += text
            self._calling = False

    # Each state reads what is held as far as it can, and returns whether another one goes on.

    def _between(self) -> bool:
        """Text up to an opening tag."""
        marker = self._family.marker
        before, found, rest = self._held.partition(marker)
        keep = 0 if found else _begun(marker, before)
        self._say(before[: len(before) - keep])
        self._held = rest if found else before[len(before) - keep :]
        if found:
            self._prefix, self._state = marker, self._head
        return bool(found)

    def _beginning(self) -> bool:
        """Where calls have no tags, an answer that begins as they do may be one."""
        begun, marker = self._held.lstrip(), self._family.marker
        if marker.startswith(begun):
            return False
        begun = begun.removeprefix(marker).lstrip()
        inside = begun.removeprefix("[").lstrip()
        if not inside:
            return False
        if inside.startswith("{"):
            self._prefix = self._held[: len(self._held) - len(inside)]
            self._held, self._state = inside, self._head
        else:
            self._state = self._rest
        return True

    def _rest(self) -> bool:
        """Text to the end."""
        self._say(self._held)
        self._held = ""
        return False

    def _head(self) -> bool:
        """An object of which it is not certain yet whether it calls."""
        text = self._held.lstrip()
        match = _HEAD.match(text)
        if match and (name := json.loads(match[1], strict=False)) in self._functions:
            self._call(name)
            self._held, self._object, self._state = text[match.end() :], _Object(), self._arguments
            return True
        found = _object_of(text)
        if found is not None and (call := self._called(found[0])):
            self._call(*call)
            self._held, self._state = text[found[1] :], self._after
            return True
        if found is not None:
            return self._is_text(len(self._held) - len(text) + found[1])
        ended = self._held.find(self._close) if self._close else -1
        return ended >= 0 and self._is_text(ended)

    def _is_text(self, end: int) -> bool:
        """What is held, up to a place, is no call."""
        self._say(self._prefix + self._held[:end])
        self._held, self._prefix = self._held[end:], ""
        self._state = self._between if self._family.open else self._rest
        return True

    def _call(self, name: str, arguments: str = "") -> None:
        """A call begins."""
        self._prefix = self._blank = ""
        self._calling = True
        self._calls.append(CallPiece(self._count, name))
        self._count += 1
        self._argue(arguments)

    def _argue(self, arguments: str) -> None:
        if arguments:
            self._calls.append(CallPiece(self._count - 1, None, arguments))

    def _arguments(self) -> bool:
        """The object of the arguments."""
        end = self._object.end(self._held)
        self._argue(self._held[:end])
        self._held = "" if end is None else self._held[end:]
        self._object, self._state = (
            (self._object, self._arguments) if end is None else (_Object(depth=1), self._tail)
        )
        return end is not None

    def _tail(self) -> bool:
        """The rest of the object that calls."""
        end = self._object.end(self._held)
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._state = self._after
        return end is not None

    def _after(self) -> bool:
        """Behind a call: another one, a closing tag, or text."""
        self._held = self._held.lstrip(_SEPARATORS)
        if self._held.startswith("{"):
            self._state = self._head
        elif not self._held or (self._close.startswith(self._held) and self._held != self._close):
            return False
        else:
            self._held = self._held.removeprefix(self._close)
            self._state = self._between if self._family.open else self._rest
        return True

    def _called(self, value: dict[str, Any]) -> tuple[str, str] | None:
        """The function and arguments of an object that is complete; None where it does not call."""
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(name, str) or name not in self._functions or not isinstance(arguments, dict):
            return None
        return name, json.dumps(arguments, ensure_ascii=False)


class _Object:
    """Follows a JSON object to its end. depth: of the objects and lists that it has opened."""

    def __init__(self, depth: int = 0):
        self._depth = depth
        self._quoted = self._escaped = False

    def end(self, text: str) -> int | None:
        """The place after its end, or before what no JSON has there; None where it goes on."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return place + 1
            elif character == "<":
                return place
        return None


def _object_of(text: str) -> tuple[dict[str, Any], int] | None:
    """The object that a text begins with, and where it ends; None while it is not complete."""
    if not text.startswith("{") or "}" not in text:
        return None
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None


def _begun(marker: str, text: str) -> int:
    """Count the characters of a marker that the text ends with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
