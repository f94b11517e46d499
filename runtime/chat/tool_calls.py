"""Calls of tools in the words of a model's family, and the grammar that forces them.

In: the text of a chat template, JSON schemas of functions. Out: a family, a grammar in llguidance's
Lark. A family is told by its template: Hermes and Qwen write `<tool_call>{…}</tool_call>`, Llama 3.1
one JSON object, Mistral `[TOOL_CALLS] [{…}]`. `tool_reader.py` reads what they write.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
