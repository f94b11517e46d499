"""What is wrong with a schema is said with its place."""

import json
import time

import pytest

from firp.runtime.grammar.schemas import schema_fault

STRANGE = {"type": "strang"}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (STRANGE, "$.type"),
        ({"properties": {"a": {"type": "string"}, "b": STRANGE}}, "$.properties.b.type"),
        ({"items": {"anyOf": [{"type": "integer"}, {"items": STRANGE}]}}, "$.items.anyOf[1].items.type"),
        ({"additionalProperties": STRANGE}, "$.additionalProperties.type"),
        ({"properties": {"a b": {"type": "string", "pattern": "("}}}, '$.properties["a b"].pattern'),
        ({"$defs": {"x": STRANGE}, "properties": {"a": {"$ref": "#/$defs/x"}}}, "$.$defs.x.type"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "$.properties.a.$ref"),
        ({"properties": {"n" * 500: STRANGE}}, f'$.properties["{"n" * 60}…"].type'),
        ({"properties": 5}, "$.properties"),
        ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "$.properties"),
    ],
)
def test_a_fault_has_a_path(schema, path):
    fault = schema_fault(json.dumps(schema))
    assert fault.path == path
    assert fault.reason


def test_what_is_right_has_no_fault():
    for schema in (True, {}, {"type": "object", "properties": {"a": {"enum": ["x", 1]}}, "required": ["a"]}):
        assert schema_fault(json.dumps(schema)) is None


def test_the_search_is_bounded():
    wide = {"properties": {f"k{i}": {"type": "integer"} for i in range(2000)} | {"last": STRANGE}}
    deep = STRANGE
    for _ in range(50):
        deep = {"items": deep}
    began = time.monotonic()
    assert schema_fault(json.dumps(wide)).path == "$"
    path = schema_fault(json.dumps(deep)).path
    assert path.endswith(".items.type")
    assert len(path) <= 201
    assert time.monotonic() - began < 5
