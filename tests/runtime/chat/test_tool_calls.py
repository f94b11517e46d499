"""Calls of tools: families are told by their templates, calls are read wherever an answer is cut, and
what is forced is what is read.
"""

import json

import pytest

from firp.runtime.chat.tool_calls import (
    HERMES,
    LLAMA,
    MISTRAL,
    calls_grammar,
    tool_family,
)
from firp.runtime.chat.tool_reader import CallPiece, ToolReader

WEATHER = ("weather", '{"city": "Köln"}')
TIME = ("time", "{}")
TAGGED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def read(family, pieces, functions=("weather", "time")):
    reader = ToolReader(family, functions)
    said = [*map(reader.push, pieces), reader.finish()]
    found = [piece for one in said for piece in one.calls]
    assert [piece.number for piece in found if piece.name] == list(range(sum(1 for p in found if p.name)))
    calls = [
        (piece.name, "".join(other.arguments for other in found if other.number == piece.number))
        for piece in found
        if piece.name
    ]
    return "".join(one.text for one in said), calls


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("qwen2", HERMES),
        ("qwen3", HERMES),
        ("llama31", LLAMA),
        ("mistral_v3", MISTRAL),
        ("smollm2", None),
        ("llama3", None),
        ("mistral_v1", None),
    ],
)
def test_a_family_is_told_by_its_template(template, family, pytestconfig):
    folder = pytestconfig.rootpath / "tests" / "runtime" / "chat" / "templates"
    assert tool_family((folder / f"{template}.jinja").read_text("utf-8")) == family


@pytest.mark.parametrize(
    ("family", "answer", "text", "calls"),
    [
        (HERMES, TAGGED, "", [WEATHER]),
        (HERMES, f"I look.\n{TAGGED}", "I look.\n", [WEATHER]),
        (HERMES, TAGGED + '\n<tool_call>\n{"name": "time"}\n</tool_call>\n', "", [WEATHER, TIME]),
        (HERMES, "1 < 2 and <tool is no tag", "1 < 2 and <tool is no tag", []),
        (HERMES, TAGGED[:30], TAGGED[:30], []),  # cut before it is certain
        (HERMES, TAGGED.partition("ln")[0], "", [("weather", '{"city": "Kö')]),
        (HERMES, TAGGED[:-5], "", [WEATHER]),
        (HERMES, '<tool_call>{"arguments": {"city": "Köln"}, "name": "weather"}</tool_call>', "", [WEATHER]),
        (HERMES, f"{TAGGED} and {TAGGED}", " and ", [WEATHER, WEATHER]),
        (HERMES, TAGGED.replace("}}", '}, "id": "}"}'), "", [WEATHER]),
        (HERMES, TAGGED.replace("Köln", '\\"}<{'), "", [("weather", '{"city": "\\"}<{"}')]),
        (HERMES, TAGGED.replace('"}}', '"'), "", [("weather", '{"city": "Köln"\n')]),  # never closed
        (LLAMA, '{"name": "weather", "parameters": {"city"', "", [("weather", '{"city"')]),
        (LLAMA, '{"name": "time", "parameters": {}} is it', "is it", [TIME]),
        (HERMES, TAGGED.replace("weather", "launch"), TAGGED.replace("weather", "launch"), []),
        (HERMES, "<tool_call>no</tool_call> so", "<tool_call>no</tool_call> so", []),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Köln"}}', "", [WEATHER]),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Köln"}}; {"name": "time"}', "", [WEATHER, TIME]),
        (LLAMA, 'It is {"name": "time"}', 'It is {"name": "time"}', []),
        (LLAMA, '{"city": 1}', '{"city": 1}', []),
        (LLAMA, '{"name": ["time"]}', '{"name": ["time"]}', []),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}}]', "", [WEATHER]),
        (MISTRAL, ' [{"name": "time", "arguments": {}}, {"name": "time"}]', "", [TIME, TIME]),
        (MISTRAL, "[1] is a source", "[1] is a source", []),
        (MISTRAL, '[{"name": "time", "arguments": 1}]', '[{"name": "time", "arguments": 1}]', []),
    ],
)
def test_calls_and_text_are_the_same_however_an_answer_comes(family, answer, text, calls):
    for size in (1, 2, 7, len(answer)):
        pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
        assert read(family, pieces) == (text, calls), size


def test_a_call_comes_in_pieces_once_it_is_certain():
    for family, key in ((HERMES, "arguments"), (LLAMA, "parameters"), (MISTRAL, "arguments")):
        reader = ToolReader(family, ("weather",))
        head = f'{family.begin}{family.open}{{"name": "weather", "{key}": '
        assert reader.push(head) == ("", [])
        assert reader.push('{"ci') == ("", [CallPiece(0, "weather"), CallPiece(0, None, '{"ci')])
        assert reader.push('ty": "x"') == ("", [CallPiece(0, None, 'ty": "x"')])
        assert reader.push("}}" + family.close + family.end) == ("", [CallPiece(0, None, "}")])
        assert reader.finish() == ("", [])


def test_text_that_cannot_be_a_call_is_let_go_at_once():
    reader = ToolReader(HERMES, ("weather",))
    assert reader.push("Let me see <").text == "Let me see "
    assert reader.push("b> ").text == "<b> "
    reader = ToolReader(LLAMA, ("weather",))
    assert reader.push(" ").text == ""
    assert reader.push("No").text == " No"
    assert reader.push("{").text == "{"


@pytest.mark.parametrize("family", [HERMES, LLAMA, MISTRAL])
def test_a_grammar_names_the_marker_of_a_special_token_by_its_id(family):
    functions = [{"name": "weather", "parameters": {"type": "object"}}]
    spelled = calls_grammar(family, functions, True, lambda text: None)
    assert "<[7]>" not in spelled
    assert ('weather\\"' in spelled) and (family.arguments in spelled)
    special = calls_grammar(family, functions, True, lambda text: 7 if text == family.marker else None)
    assert ("<[7]>" in special) == bool(family.marker)


LLGUIDANCE_CASES = [
    (HERMES, True, TAGGED, True),
    (HERMES, True, TAGGED + "\n" + TAGGED, True),
    (HERMES, False, TAGGED + "\n" + TAGGED, False),
    (HERMES, True, "No.", False),
    (HERMES, True, TAGGED.replace('"Köln"', "3"), False),
    (LLAMA, True, '{"name": "weather", "parameters": {"city": "x"}}', True),
    (LLAMA, True, '{"name": "time", "parameters": {}}', True),
    (MISTRAL, True, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "x"}}]', True),
    (MISTRAL, True, '[TOOL_CALLS] [{"name": "rain", "arguments": {"city": "x"}}]', False),
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [{"name": "weather", "parameters": SCHEMA}, {"name": "time"}]


def accepts(grammar, text):
    llguidance = pytest.importorskip("llguidance")
    matcher = llguidance.LLMatcher(
        llguidance.LLTokenizer("byte"), llguidance.LLMatcher.grammar_from_lark(grammar)
    )
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return (
        matcher.validate_tokens(data) == len(data) and matcher.consume_tokens(data) and matcher.is_accepting()
    )


@pytest.mark.parametrize(("family", "parallel", "text", "good"), LLGUIDANCE_CASES)
def test_what_a_grammar_forces_is_what_is_read(family, parallel, text, good):
    grammar = calls_grammar(family, FUNCTIONS, parallel, lambda text: None)
    assert accepts(grammar, text) == good
    if good:
        rest, calls = read(family, [text])
        assert rest == ""
        assert len(calls) == text.count('"name"')


def test_an_answer_of_a_format_may_stand_instead_of_a_call():
    grammar = calls_grammar(HERMES, FUNCTIONS, True, lambda text: None, SCHEMA)
    assert accepts(grammar, TAGGED)
    assert accepts(grammar, json.dumps({"city": "x"}))
    assert not accepts(grammar, json.dumps({"town": "x"}))
