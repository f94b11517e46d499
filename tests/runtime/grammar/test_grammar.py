"""Grammars compile or say where they fail; a walk knows what may follow, back and forth."""

import json
import re

import numpy as np
import pytest

from firp.runtime.errors import FirpError, GrammarError
from firp.runtime.grammar.compiler import GrammarCompiler
from firp.runtime.loop.text import load_tokenizer
from firp.runtime.picking.context import Context
from firp.runtime.structured import StructuredOutput


@pytest.fixture(scope="module")
def tokenizer(pytestconfig):
    return load_tokenizer(pytestconfig.rootpath / "tests" / "demo_model" / "tokenizer.json")


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, tokenizer.get_vocab_size() + 5, frozenset({0}))


@pytest.fixture
def walk(compiler):
    """A walk along a grammar, after a prompt of two tokens; tokens 0 and those given end the text."""

    def make(structured, stop_token_ids=()):
        return compiler.compile(structured).walk(2, frozenset({0, *stop_token_ids}), stop_token_ids)

    return make


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_a_mask_has_the_tokens_that_may_follow_and_end_tokens_where_the_grammar_accepts(walk, tokenizer):
    letters = walk(StructuredOutput(regex="[ab]+c?"))
    mask = letters.allowed(Context([7, 7], []))
    size = tokenizer.get_vocab_size()
    begins = [token for token in range(size) if re.fullmatch("[ab]+c?", tokenizer.decode([token]))]
    assert mask.shape == (size + 5,)
    assert np.flatnonzero(mask).tolist() == begins
    assert len(begins) > 4
    after = letters.allowed(Context([7, 7], ids(tokenizer, "ab")))
    assert np.flatnonzero(after).tolist() == [0, *sorted({*begins, *ids(tokenizer, "c")})]
    assert not letters.complete(Context([7, 7], ids(tokenizer, "ab")))
    assert letters.complete(Context([7, 7], [*ids(tokenizer, "ab"), *ids(tokenizer, "c")]))


def test_a_walk_goes_to_and_fro_and_gives_what_a_fresh_one_gives(walk, tokenizer):
    grammar = StructuredOutput(json_schema={"type": "object", "required": ["name"]})
    text = ids(tokenizer, '{"name": [1, "two", {"x": null}], "b": 2}')
    moving = walk(grammar)
    decided = [5, 6]
    rng = np.random.default_rng(0)
    for at in range(len(text)):
        for end in (*rng.integers(at, len(text), 2).tolist(), at):
            context = Context(decided, text[at:end])
            fresh = walk(grammar)
            assert (moving.allowed(context) == fresh.allowed(Context([*decided], text[at:end]))).all()
            assert moving.legal(context, [text[end:], [0], [*text[end : end + 1], 0]]) == [
                len(text) - end, 0, 1,
            ]  # fmt: skip
        decided.append(text[at])  # the same list grows, as a sequence's does
    assert moving.complete(Context(decided, []))


def test_text_that_is_a_stop_token_follows_the_grammar_and_special_tokens_end_it(walk, tokenizer):
    (brace,) = ids(tokenizer, "}")
    text = ids(tokenizer, '{"a":{')
    inner = walk(StructuredOutput(json_object=True), (brace,)).allowed(Context([7, 7], text))
    assert inner[brace]
    assert not inner[0]


def test_what_is_forced_spells_the_grammar(walk, tokenizer):
    schema = {
        "type": "object", "properties": {"identifier": {"type": "integer"}},
        "required": ["identifier"], "additionalProperties": False,
    }  # fmt: skip
    keys = walk(StructuredOutput(json_schema=schema))
    forced = keys.forced(Context([7, 7], ids(tokenizer, '{"')))
    assert tokenizer.decode(forced).startswith("identifier"[: len(tokenizer.decode(forced))])
    assert forced
    assert keys.legal(Context([7, 7], ids(tokenizer, '{"')), [forced]) == [len(forced)]
    one = walk(StructuredOutput(choice=["a single text"]))
    assert tokenizer.decode(one.forced(Context([7, 7], []))) == "a single text"


@pytest.mark.parametrize("text", ["yes", 'quo"te', "emoji 😀 é\n", "back\\slash"])
def test_a_choice_is_the_text_itself(text, walk, tokenizer):
    choice = walk(StructuredOutput(choice=["no such thing", text]))
    assert choice.complete(Context([7, 7], ids(tokenizer, text)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regex": "(ab"}, "grammar of regex does not compile .* unclosed group$"),
        ({"regex": "(a\\nb"}, r'got invalid regex "\(a'),
        ({"regex": "(" * 9000}, "grammar of regex does not compile"),
        ({"lark": "start: foo bar"}, 'grammar of lark does not compile.*1\\(8\\).*unknown name: "foo"'),
        ({"lark": 'start: "a"\nx: !'}, "grammar of lark does not compile.*2\\("),
        ({"lark": ""}, "grammar of lark does not compile.*[Ee]mpty"),
        ({"json_schema": {"type": "objec"}}, "json_schema does not compile.*objec at \\$\\.type"),
        ({"json_schema": {"$ref": "#/x"}}, "grammar of json_schema does not compile.*'/x'"),
        ({"json_schema": {"$ref": "#"}}, "grammar of json_schema does not compile.*no text meets it"),
        ({"json_schema": False}, "grammar of json_schema does not compile.*false"),
    ],
)
def test_a_grammar_that_does_not_compile_says_where(given, message, compiler):
    with pytest.raises(FirpError, match=message) as caught:
        compiler.compile(StructuredOutput(**given))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


CYCLE = {}
CYCLE["properties"] = CYCLE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "bad structured output.*none.*one of json_schema, regex"),
        ({"regex": "a", "lark": "b"}, "bad structured output.*regex, lark"),
        ({"regex": 5}, "bad regex.*5"),
        ({"regex": "\ud800"}, "regex is not Unicode.*character 0"),
        ({"regex": "a" * 100_001}, "regex is too long.*100001"),
        ({"json_schema": '{"type": '}, "json_schema is not JSON.*column 10"),
        ({"json_schema": [1]}, "bad json_schema"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema is not JSON"),
        ({"json_schema": {"a": float("nan")}}, "json_schema is not JSON.*Out of range"),
        ({"json_schema": CYCLE}, "json_schema is not JSON"),
        ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
        ({"choice": []}, "bad choice"),
        ({"choice": [f"{number:05}" for number in range(10_001)]}, "choice is too long"),
        ({"choice": "ab"}, "bad choice"),
        ({"choice": ["a", ""]}, "bad choice"),
        ({"json_object": "yes"}, "bad json_object"),
    ],
)
def test_what_is_no_structured_output_is_refused(given, message):
    with pytest.raises(FirpError, match=message):
        StructuredOutput(**given)


def test_a_schema_may_be_text_or_what_it_means_and_is_compiled_once(compiler):
    schema = {"type": "object", "properties": {"a": {"const": 1}}}
    whole = StructuredOutput(json_schema=schema)
    assert whole == StructuredOutput(json_schema=json.dumps(schema, indent=2))
    assert compiler.compile(whole) is compiler.compile(StructuredOutput(json_schema=schema))
    assert whole.kind == "json_schema"
    assert compiler.compile(StructuredOutput(json_schema=True)).vocab_size


@pytest.mark.parametrize(
    ("text", "flexible"),
    [
        ('{"a":1}', False),
        (json.dumps({"a": [1, 2, {"x": {}}]}, indent=4), False),
        ('{\n\t"a": 1\n}', False),
        ('{"a":\n\n1}', True),
        ('{"a":       1}', True),
    ],
)
def test_space_between_the_parts_of_json_has_a_bound_unless_the_schema_says_otherwise(
    text, flexible, walk, tokenizer
):
    given = ids(tokenizer, text)
    bounded = walk(StructuredOutput(json_object=True)).legal(Context([7, 7], []), [given])
    assert (bounded == [len(given)]) is not flexible
    own = StructuredOutput(json_schema={"type": "object", "x-guidance": {"whitespace_flexible": True}})
    assert walk(own).legal(Context([7, 7], []), [given]) == [len(given)]


def test_tokens_outside_the_grammar_are_one_line(walk, tokenizer):
    with pytest.raises(GrammarError, match="the grammar cannot go on") as caught:
        walk(StructuredOutput(regex="[0-9]+")).allowed(Context([7, 7], ids(tokenizer, "a")))
    assert not re.search("\n|<state>", str(caught.value))
