"""Where a JSON schema is wrong.

In: a schema. Out: the path of the part that llguidance refuses, and why. The library says why alone; so
the parts of a schema that it refuses are tried one by one, down to the smallest that it refuses for the
same reason.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from firp.runtime.errors import FirpError, foreign_errors
from firp.runtime.extras import require
from firp.runtime.grammar.walk import told

_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_LISTED = ("prefixItems", "anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not")
_SINGLE += ("if", "then", "else", "unevaluatedItems", "unevaluatedProperties")
_DEFINITIONS = ("$defs", "definitions")
_KEPT_SCHEMAS = 64
_NAME = 60  # characters of a name in a path
_PATH = 200  # and of a path
_MOST_TRIES = 300  # a schema with more parts than that is told where the search has come to


class Fault(NamedTuple):
    """What is wrong, and where."""

    path: str  # such as $.properties.age.type
    reason: str


@functools.lru_cache(_KEPT_SCHEMAS)
def schema_fault(text: str) -> Fault | None:
    """What is wrong with a schema, given as JSON; None for one that is right by itself. It may still be
    too large, or have no text that meets it: the compiler says so.
    """
    require("structured output", ["llguidance"])
    schema = json.loads(text)
    reason = _reason(schema)
    if not reason:
        return None
    path = _Search(schema, reason).path(schema)
    return Fault(path if len(path) <= _PATH else f"{path[: _PATH // 2]}…{path[-_PATH // 2 :]}", reason)


class _Search:
    """A search for the smallest part of a schema that is refused for this reason."""

    def __init__(self, schema: Any, reason: str):
        own = schema if isinstance(schema, dict) else {}
        self._definitions = {name: own[name] for name in _DEFINITIONS if name in own}
        self._reason = reason
        self._left = _MOST_TRIES

    def path(self, schema: Any) -> str:
        """Where it is in a schema that is refused."""
        path = "$"
        while found := next(filter(lambda part: self._refused(part[1]), _parts(schema)), None):
            path, schema = path + found[0], found[1]
        for name in sorted(schema, key="type".__eq__) if isinstance(schema, dict) else ():
            others = {key: value for key, value in schema.items() if key != name}
            if self._left > 0 and not self._refused(others):
                return path + _step(name)
        return path

    def _refused(self, schema: Any) -> bool:
        self._left -= 1
        whole = {**self._definitions, **schema} if isinstance(schema, dict) else schema
        return self._left >= 0 and _reason(whole) == self._reason


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas right below a schema, and the way to each."""
    if not isinstance(schema, dict):
        return
    for keyword in _NAMED:
        if isinstance(schema.get(keyword), dict):
            for name, part in schema[keyword].items():
                yield f".{keyword}{_step(name)}", part
    for keyword in _LISTED:
        if isinstance(schema.get(keyword), list):
            for index, part in enumerate(schema[keyword]):
                yield f".{keyword}[{index}]", part
    for keyword in _SINGLE:
        if keyword in schema:
            yield f".{keyword}", schema[keyword]


def _step(name: str) -> str:
    """A name in a path, shortened where it is long."""
    if name.lstrip("$").isidentifier() and len(name) <= _NAME:
        return f".{name}"
    short = name if len(name) <= _NAME else name[:_NAME] + "…"
    return f"[{json.dumps(short, ensure_ascii=False)}]"


def _reason(schema: Any) -> str:
    """Why llguidance refuses a schema; "" where it does not."""
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        with foreign_errors(FirpError, lambda error: told(str(error))):
            return told(matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema))))
    except FirpError as error:
        return error.what
