"""Structured output: what the text of an answer must be.

In: a JSON schema, a regular expression, a Lark grammar, or a list of texts. Out: a
`StructuredOutput`, a field of `SamplingParams`. Whether a grammar compiles is known once there is a
tokenizer: `firp.runtime.grammar`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from firp.runtime.errors import FirpError

MOST_CHARACTERS = 100_000  # of a grammar: the time to compile one grows with the square of its length


@dataclass(frozen=True)
class StructuredOutput:
    """One of five kinds of grammar; the text is a word of it, with nothing before and nothing
    after. Raises FirpError unless exactly one is given.
    """

    json_schema: str | Mapping[str, Any] | bool | None = None  # kept as JSON text
    regex: str | None = None  # in the syntax of Rust's regex crate
    lark: str | None = None  # in llguidance's dialect of Lark; begins with `start`
    choice: tuple[str, ...] | None = None  # one of these texts
    json_object: bool = False  # any JSON object

    def __post_init__(self):
        given = self._given()
        if len(given) != 1:
            expected = "one of " + ", ".join(field.name for field in fields(self))
            raise FirpError("bad structured output", got=", ".join(given) or "none", expected=expected)
        convert = {"json_schema": _schema, "choice": _choice, "json_object": _object}.get(given[0], _text)
        value = convert(given[0], getattr(self, given[0]))
        if (size := len('" | "'.join(value) if isinstance(value, tuple) else str(value))) > MOST_CHARACTERS:
            expected = f"at most {MOST_CHARACTERS}"
            raise FirpError(f"{given[0]} is too long", got=f"{size} characters", expected=expected)
        object.__setattr__(self, given[0], value)

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return self._given()[0]

    def _given(self) -> list[str]:
        default = {field.name: field.default for field in fields(self)}
        return [name for name, value in default.items() if getattr(self, name) is not value]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FirpError(f"bad {name}", got=f"{value!r:.60}", expected="a string")
    return _unicode(name, value)


def _schema(name: str, value: Any) -> str:
    """The text of a schema."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(parsed, Mapping | bool):
            raise FirpError(f"bad {name}", got=f"{value!r:.60}", expected="a JSON object, or its text")
        kept = parsed if isinstance(parsed, bool) else dict(parsed)
        return _unicode(name, json.dumps(kept, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise FirpError(f"{name} is not JSON", got=f"{error!s:.200}") from error


def _choice(name: str, value: Any) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, list | tuple) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise FirpError(f"bad {name}", got=f"{value!r:.60}", expected="a list of non-empty strings")
    return tuple(dict.fromkeys(_unicode(name, text) for text in texts))


def _object(name: str, value: Any) -> bool:
    if value is not True:
        raise FirpError(f"bad {name}", got=f"{value!r:.60}", expected="True or False")
    return True


def _unicode(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate at character {error.start}"
        raise FirpError(f"{name} is not Unicode text", got=got) from error
    return text
