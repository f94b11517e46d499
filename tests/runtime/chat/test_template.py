"""Chat templates: equal to transformers' on the families' templates, and one line for each way a
template can be bad.
"""

import json
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from firp.runtime.chat.template import ChatTemplate
from firp.runtime.errors import BundleError, FirpError, PromptError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells how the weather is: <wind>, 'rain' & Schnee für Köln",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
SYSTEM = {"role": "system", "content": "Answer in verse.\n"}
USER = {"role": "user", "content": "  How is “it” in Köln?\n<|x|> "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGrey, alas.  "}
REASONED = {"role": "assistant", "content": "Grey.", "reasoning_content": "clouds"}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "several turns": [USER, ANSWER, USER, REASONED, USER],
    "system, several turns": [SYSTEM, USER, ANSWER, USER],
    "ends with an answer": [USER, ANSWER],
    "tool call": [
        SYSTEM,
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12 °C", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Cold."},
        USER,
    ],
    "roles that do not alternate": [USER, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
}
FAMILIES = [
    *("chatml", "command_r", "deepseek", "gemma", "granite", "llama2", "llama3", "llama31", "mistral_v1"),
    *("mistral_v3", "parts", "phi3", "qwen2", "qwen3", "smollm2", "zephyr"),
]


def theirs(text, messages, **options):
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    return render_jinja_template([kept], chat_template=text, **options, **TOKENS)[0][0]


@pytest.fixture
def template_text(pytestconfig):
    folder = pytestconfig.rootpath / "tests" / "runtime" / "chat" / "templates"
    assert sorted(file.stem for file in folder.iterdir()) == FAMILIES
    return lambda family: (folder / f"{family}.jinja").read_text("utf-8")


@pytest.mark.parametrize("generation_prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_transformers(family, tools, generation_prompt, template_text):
    text = template_text(family)
    template = ChatTemplate(text, TOKENS)
    rendered = 0
    for name, messages in CONVERSATIONS.items():
        options = {"tools": tools, "add_generation_prompt": generation_prompt}
        try:
            expected = theirs(text, messages, **options)
        except Exception:  # theirs refuses: a role, an order, a content
            with pytest.raises(PromptError):
                template.render(messages, **options)
            continue
        assert template.render(messages, **options) == expected, name
        rendered += 1
    assert rendered >= 2


def test_documents_and_variables_reach_the_template(template_text):
    documents = [{"title": "Köln", "text": "Grey."}, {"title": "Bonn", "text": "Wet."}]
    for family, options in (("command_r", {"documents": documents}), ("qwen3", {"enable_thinking": False})):
        text = template_text(family)
        options["add_generation_prompt"] = True
        expected = theirs(text, [USER], **options)
        assert ChatTemplate(text, TOKENS).render([USER], **options) == expected
        assert expected != theirs(text, [USER], add_generation_prompt=True)


def of_files(**files):
    return ChatTemplate.from_files(lambda name: files.get(name.partition(".")[0]))


def test_a_file_of_its_own_goes_before_the_configuration():
    config = json.dumps(
        {"chat_template": "config", "eos_token": {"content": "<end>"}, "bos_token": None}
    ).encode()
    assert of_files(tokenizer_config=config).render([USER]) == "config"
    both = of_files(tokenizer_config=config, chat_template=b"file {{ eos_token }}{{ bos_token }}")
    assert both.render([USER]) == "file <end>"
    assert both.eos_token == "<end>"
    assert of_files(tokenizer_config=b"{}") is None
    assert of_files() is None


def test_tools_have_a_template_of_their_own_where_there_is_one():
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = of_files(tokenizer_config=json.dumps({"chat_template": named}).encode())
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=TOOLS) == "tools"
    template = of_files(tokenizer_config=json.dumps({"chat_template": named[:1]}).encode())
    assert template.render([USER], tools=TOOLS) == "plain"
    template = of_files(tokenizer_config=json.dumps({"chat_template": named[1:]}).encode())
    with pytest.raises(BundleError, match="no default chat template"):
        template.render([USER])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": b"{"}, "tokenizer_config.json is not JSON"),
        ({"tokenizer_config": b"[]"}, "bad tokenizer_config.json"),
        ({"tokenizer_config": b"\xff"}, "not UTF-8"),
        ({"tokenizer_config": b'{"chat_template": 5}'}, "bad chat_template"),
        ({"tokenizer_config": b'{"chat_template": [{"name": "default"}]}'}, "bad chat_template"),
        ({"chat_template": b"\xff\xfe"}, "chat_template.jinja is not UTF-8"),
    ],
)
def test_files_that_hold_something_else(files, message):
    with pytest.raises(BundleError, match=message):
        of_files(**files)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", PromptError, "refuses.*got roles must alternate$"),
        ("a\n{% if %}", BundleError, "bad chat template.*line 2"),
        ("{{ 'x' | wordwrap }}", BundleError, "No filter named 'wordwrap'"),
        ("{{ " + "(" * 900 + ")" * 900 + " }}", BundleError, "bad chat template"),
        ("{{ ''.__class__.__mro__ }}", PromptError, "reaches for what it must not.*__class__"),
        ("{{ messages.append(1) }}", PromptError, "reaches for what it must not.*append"),
        ("{{ cycler.__init__.__globals__.os }}", PromptError, "reaches for what it must not"),
        ("{{ namespace(__class__=1) }}", PromptError, "underscore"),
        ("{{ dict.__class__.__mro__ }}", PromptError, "reaches for what it must not"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", PromptError, "reaches for what it must not"),
        ("{% include '/etc/passwd' %}", PromptError, "the chat template fails.*no loader"),
        ("a\n{{ absent.member }}", PromptError, "fails.*line 2: 'absent' is undefined"),
        ("{{ 1 / 0 }}", PromptError, "fails.*division by zero"),
    ],
)
def test_a_template_that_fails_gets_one_line(text, kind, message):
    with pytest.raises(kind, match=message) as caught:
        ChatTemplate(text).render([USER])
    assert "\n" not in str(caught.value)


DOUBLED = "{% set ns = namespace(x='abc') %}{% for i in range(99) %}{% set ns.x = OF %}{% endfor %}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * [1] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'.zfill(10**12) }}",
        "{{ ('\t' * 9999).expandtabs(99999) }}",
        "{{ ('\t' * 9999).expandtabs(tabsize=99999) }}",
        "{% set ns = namespace(x=0) %}{% for i in range(9999) %}"
        "{% set ns.x = [ns.x, dict.fromkeys(range(99999))] %}{% endfor %}",
        "{% set ns = namespace(x=0) %}{% for i in range(99999) %}"
        "{% set ns.x = [ns.x, [" + "1," * 9999 + "]] %}{% endfor %}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a' | indent(10**9, true) }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ 1.5 | round(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**9) }}",
        "{{ 'aaaa'.replace('a', 'b' * 8000000) }}",
        "{{ 'aaaa' | replace('a', 'b' * 8000000) }}",
        "{{ ('b' * 99999).join(range(99999) | map('string')) }}",
        "{{ range(99999) | join('b' * 99999) }}",
        "{{ range(99999) | map('string') | map('center', 9999) | join }}",
        "{{ ('a,' * 4000000).split(',') | length }}",
        DOUBLED.replace("OF", "ns.x + ns.x"),
        DOUBLED.replace("OF", "ns.x ~ ns.x"),
        DOUBLED.replace("OF", "[ns.x, ns.x]") + "{{ ns.x }}",
        DOUBLED.replace("OF", "(ns.x, ns.x) | string"),
        "{% set ns = namespace(x='abc') %}{% for i in range(99) %}"
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% for i in range(99999) %}" + "long " * 999 + "{% endfor %}",
        "{% set x %}{% for i in range(99999) %}" + "long " * 9999 + "{% endfor %}{% endset %}",
        "{% set ns = namespace(x=[1] * 500000) %}"
        "{% for i in range(9999) %}{% set ns.x = ns.x[:] %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ range(10**9) }}",
    ],
)
def test_a_template_that_builds_gigabytes_ends_in_one_line(text):
    began = time.thread_time()
    with pytest.raises(PromptError, match="the chat template"):
        ChatTemplate(text).render([USER])
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    ],
)
def test_a_template_without_end_ends(text, monkeypatch):
    monkeypatch.setattr("firp.runtime.chat.meter.SECONDS", 0.1)
    with pytest.raises(PromptError, match="beyond its limits.*without end"):
        ChatTemplate(text).render([USER])


def test_a_long_conversation_is_within_the_limits(template_text):
    messages = [USER, ANSWER] * 400 + [{"role": "user", "content": "word " * 100_000}]
    for family in ("qwen3", "llama31", "mistral_v3", "deepseek"):
        text = template_text(family)
        assert ChatTemplate(text, TOKENS).render(messages) == theirs(text, messages)


@pytest.mark.parametrize("given", ["tool", {"a": 1}, [5]])
def test_tools_are_json_objects(given):
    with pytest.raises(FirpError, match="bad tools"):
        ChatTemplate("x").render([USER], tools=given)


def test_other_objects_do_not_reach_the_template():
    with pytest.raises(PromptError, match="a Path|a PosixPath"):
        from pathlib import Path

        ChatTemplate("{{ messages[0].file.unlink() }}").render([{**USER, "file": Path("absent")}])
