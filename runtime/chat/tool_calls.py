"""Calls of tools in the words of a model's family: the grammar that forces them, and what reads them.

In: the text of a chat template, JSON schemas of functions, an answer as it comes. Out: a grammar in
llguidance's Lark, text without calls, and `ToolCall`s. A family is told by its template: Hermes and
Qwen write `<tool_call>{…}</tool_call>`, Llama 3.1 one JSON object, Mistral `[TOOL_CALLS] [{…}]`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ToolFamily:
    """How a family of models writes calls. The whole is `begin`, calls with `between` them, `end`."""

    name: str
    arguments: str  # the key of the arguments in a call
    begin: str = ""
    end: str = ""
    between: str = "\n"
    open: str = ""  # around each call
    close: str = ""
    marker: str = ""  # the part of them that may be a special token, and so no text
    several: bool = True  # whether its template takes more than one call a turn


HERMES = ToolFamily("hermes", "arguments", open="<tool_call>\n", close="\n</tool_call>", marker="<tool_call>")
LLAMA = ToolFamily("llama", "parameters", several=False)
MISTRAL = ToolFamily(
    "mistral", "arguments", begin="[TOOL_CALLS] [", end="]", between=", ", marker="[TOOL_CALLS]"
)


class ToolCall(NamedTuple):
    """A function that the model calls."""

    name: str
    arguments: str  # a JSON object, as text


class ToolText(NamedTuple):
    """What a piece of an answer says, and what it calls."""

    text: str
    calls: list[ToolCall]


def tool_family(template: str) -> ToolFamily | None:
    """The family whose calls a chat template writes; None where it has no tools."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    return LLAMA if '"parameters"' in template else None


def calls_grammar(
    family: ToolFamily,
    functions: Sequence[Mapping[str, Any]],
    parallel: bool,
    special: Callable[[str], int | None],
    answer_schema: Mapping[str, Any] | None = None,
) -> str:
    """A Lark grammar of llguidance: at least one call of these functions.

    functions: objects with "name" and "parameters", a JSON schema; parallel: whether calls may
    follow each other; special: the id of a token that is no text, None for others; answer_schema: of
    the JSON that may be answered instead of a call.
    """
    rules = [f"start: {'calls | answer' if answer_schema is not None else 'calls'}"]
    if answer_schema is not None:
        rules.append(f"answer: %json {json.dumps(answer_schema)}")
    again = f" ({json.dumps(family.between)} call)*" if parallel and family.several else ""
    begin, end, opened, closed = (
        _literal(text, family.marker, special)
        for text in (family.begin, family.end, family.open, family.close)
    )
    rules.append(f"calls: {begin} call{again} {end}")
    one_of = " | ".join(f"call_{index}" for index in range(len(functions)))
    rules.append(f"call: {opened} ({one_of}) {closed}")
    for index, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function["name"])}, "{family.arguments}": '
        rules.append(f'call_{index}: {json.dumps(head)} arguments_{index} "}}"')
        schema = function.get("parameters") or {"type": "object"}
        rules.append(f"arguments_{index}: %json {json.dumps(schema)}")
    return "\n".join(rules)


def _literal(text: str, marker: str, special: Callable[[str], int | None]) -> str:
    """Text in a grammar; a marker that is a special token stands in it by its id."""
    token = special(marker) if marker and marker in text else None
    if token is None:
        return json.dumps(text) if text else ""
    before, _, after = text.partition(marker)
    around = [json.dumps(part) if part else "" for part in (before, after)]
    return f"{around[0]} <[{token}]> {around[1]}"


class ToolReader:
    """Takes calls out of an answer as it comes. functions: the names that may be called.

    What looks like a call, but is none, is text: nothing of an answer is lost. A call is let go when
    it is complete.
    """

    def __init__(self, family: ToolFamily, functions: Iterable[str]):
        self._family = family
        self._functions = frozenset(functions)
        self._held = ""
        self._said = False  # whether text came before
        self._called = False

    def push(self, text: str) -> ToolText:
        """Add text; return what is certain by now."""
        self._held += text
        return self._tagged() if self._family.open else self._whole()

    def finish(self) -> ToolText:
        """What is still held back."""
        held, self._held = self._held, ""
        if self._family.open:
            return ToolText("" if self._called and not held.strip() else held, [])
        calls = self._parse(held.strip().removeprefix(self._family.marker))
        return ToolText("", calls) if calls else ToolText(held, [])

    def _tagged(self) -> ToolText:
        """Between an opening and a closing tag lies one call."""
        begin, end = self._family.marker, self._family.close.strip()
        text, calls = "", []
        while True:
            before, found, rest = self._held.partition(begin)
            if not found:
                keep = _begun(begin, before)
                text += self._spoken(before[: len(before) - keep])
                self._held = before[len(before) - keep :]
                return ToolText(text, calls)
            inside, closed, after = rest.partition(end)
            if not closed:
                text += self._spoken(before)
                self._held = begin + rest
                return ToolText(text, calls)
            parsed = self._parse(inside)
            text += self._spoken(before if parsed else before + begin + inside + end)
            calls += parsed
            self._called = self._called or bool(parsed)
            self._held = after

    def _whole(self) -> ToolText:
        """An answer that begins as calls do is held until its end."""
        begun = self._held.lstrip()
        if self._said or (begun and begun[0] not in "{["):
            text, self._held = self._held, ""
            self._said = True
            return ToolText(text, [])
        return ToolText("", [])

    def _spoken(self, text: str) -> str:
        """Text between calls; blanks alone separate them and are no text."""
        return "" if self._called and not text.strip() else text

    def _parse(self, text: str) -> list[ToolCall]:
        """All calls of a text that holds nothing else, else none."""
        decoder = json.JSONDecoder()
        found: list[Any] = []
        text = text.strip()
        while text:
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                return []
            found += value if isinstance(value, list) else [value]
            text = text[end:].lstrip("; \n")
        calls = [self._call(value) for value in found]
        return [] if None in calls else calls

    def _call(self, value: Any) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._functions:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _begun(marker: str, text: str) -> int:
    """Count the characters of a marker that the text ends with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
