"""The chat command, on a terminal and in a pipe."""

import json
import signal
import subprocess

import pytest
from support.chat_bundles import add_chat
from support.command_line import FIRP, fails, firp
from support.terminal import Terminal

from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams

TEMPLATE = (
    "{% for m in messages %}# {{ m.role }}\n\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# answer\n\n{{ begin }}{% endif %}"
)
PROMPT = "> "
LINE_TAKEN = "\x1b[?2004l\r"  # what readline writes once a line is whole


@pytest.fixture(scope="module")
def bundle(demo_bundle, tmp_path_factory):
    return add_chat(demo_bundle, tmp_path_factory.mktemp("chat") / "bundle", TEMPLATE)


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine.load(bundle)


@pytest.fixture
def terminal(bundle):
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal("chat", bundle, *arguments))
        opened[-1].wait_for(PROMPT)
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.kill()
        each.process.wait()


def answers(engine, texts, new_tokens, system=None, **variables):
    """What stateless chat says to these texts, one after the other."""
    messages = [{"role": "system", "content": system}] if system else []
    found = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        params = SamplingParams(new_tokens)
        found.append(engine.chat(messages, params, chat_template_kwargs=variables).text)
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def piped(bundle, text, *arguments):
    return subprocess.run(
        [*FIRP, "chat", str(bundle), *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_line_of_a_pipe_is_a_turn(bundle, engine):
    result = piped(bundle, "def f(x):\n\nand then\\\nmore", "--max-new-tokens", 12, "--system", "Be brief.")
    assert result.returncode == 0, result.stderr
    expected = answers(engine, ["def f(x):", "and then\nmore"], 12, "Be brief.")
    assert result.stdout == "".join(f"{answer}\n" for answer in expected)
    assert "> " not in result.stderr
    assert "cut: " in result.stderr


def test_words_in_a_pipe_and_what_the_cache_saved(bundle, engine):
    result = piped(bundle, "hi\nagain\n/stats\n/reset\n/stats\n/nonsense\nhi\n", "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    first, second = answers(engine, ["hi", "again"], 8)
    assert result.stdout == f"{first}\n{second}\n{first}\n"
    assert "2 turns, " in result.stderr
    assert "14 tokens in " in result.stderr
    assert "0 turns, " in result.stderr
    assert "unknown word /nonsense; /help" in result.stderr
    (prompt, reused) = next(
        (int(line.split()[0]), int(line.split()[3]))
        for line in result.stderr.splitlines()
        if "from the cache" in line
    )
    assert 0 < reused < prompt


@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_a_word_ends_the_conversation(word, bundle, engine):
    result = piped(bundle, f"hi\n{word}\nagain\n", "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"{answer}\n" for answer in answers(engine, ["hi"], 8))


def test_drafts_are_marked(bundle, engine):
    begin = ("--chat-template-kwargs", '{"begin": "import re"}')
    result = piped(bundle, "def f(x):\n", "--max-new-tokens", 16, "--show-drafts", *begin)
    (expected,) = answers(engine, ["def f(x):"], 16, begin="import re")
    assert [expected] != answers(engine, ["def f(x):"], 16)
    assert result.stdout.replace("│", "") == f"{expected}\n"
    assert 1 < result.stdout.count("│") < 16


def test_a_turn_that_fails_in_a_pipe_is_one_line(bundle):
    result = piped(bundle, "word " * 4000 + "\n")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: prompt longer than the context")
    assert line.endswith("Fix: reset the conversation (/reset)")


def test_a_conversation_on_a_terminal(terminal, engine):
    chat = terminal("--max-new-tokens", 8)
    first, second = answers(engine, ["hi", "again"], 8)
    chat.type("hi\n")
    assert first.strip().splitlines()[0] in chat.wait_for(PROMPT).replace("\r\n", "\n")
    chat.type("again\n")
    assert second.strip().splitlines()[0] in chat.wait_for(PROMPT).replace("\r\n", "\n")
    chat.type("\x1b[A\x1b[A\n")  # twice the arrow up: history
    chat.wait_for(PROMPT)
    chat.type("/stats\n")
    chat.wait_for("3 turns, ")
    chat.wait_for(PROMPT)
    chat.type("/help\n")
    chat.wait_for("Ctrl-C ends an answer")
    chat.wait_for(PROMPT)
    chat.type("\x04")
    assert chat.end() == 0


@pytest.mark.parametrize("paste", ["\x1b[200~one\rtwo\x1b[201~\n", "one\ntwo\n", "one\\\ntwo\n"])
def test_lines_that_are_pasted_are_one_message(terminal, paste):
    chat = terminal("--max-new-tokens", 4)
    chat.type(paste)
    chat.wait_for("cut: ")
    chat.wait_for(PROMPT)
    chat.type("/stats\n")
    chat.wait_for("1 turns, ")
    chat.wait_for(PROMPT)
    chat.type("\x04")
    assert chat.end() == 0


def test_ctrl_c_ends_an_answer_but_not_the_conversation(terminal):
    chat = terminal("--max-new-tokens", 1500, "--temperature", 1)
    chat.type("\x03")
    chat.type("\n")  # Python handles a signal that comes right before it waits for a key after that key
    chat.wait_for("Ctrl-D ends the conversation")
    chat.wait_for(PROMPT)
    chat.type("def f(x):\n")
    chat.wait_for("def f(x):")  # as it is typed
    chat.wait_for(LINE_TAKEN)
    chat.wait_for_more()  # something was answered
    chat.type("\x03")
    chat.wait_for(PROMPT)
    chat.type("/stats\n")
    chat.wait_for("1 turns, ")
    chat.wait_for(PROMPT)
    chat.type("\x04")
    assert chat.end() == 0


def test_the_end_of_the_context_is_one_line_and_the_program_goes_on(terminal):
    chat = terminal("--max-new-tokens", 4)
    chat.type("\x1b[200~" + "word " * 3000 + "\x1b[201~\n")
    chat.wait_for("error: prompt longer than the context")
    chat.wait_for("/reset")
    chat.wait_for(PROMPT)
    chat.type("hi\n")
    chat.wait_for(PROMPT)
    chat.type("\x04")
    assert chat.end() == 0


def test_sigterm_ends_the_program(terminal):
    chat = terminal()
    chat.process.send_signal(signal.SIGTERM)
    chat.type("\n")  # Python handles a signal that comes right before it waits for a key after that key
    chat.wait_for("error: interrupted")
    assert chat.end() == 1


def test_a_bundle_without_a_template_is_one_line(demo_bundle):
    assert "the bundle has no chat template" in fails("chat", demo_bundle)
    assert "exclude each other" in fails("chat", demo_bundle, "--plain", "--show-drafts")


def test_generate_takes_messages_and_wraps_texts(bundle, engine, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}]}\n{"prompt": "hi"}\n{"input_ids": [5, 6]}\n'
    )
    arguments = ("--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 8, "--json")
    (expected,) = answers(engine, ["hi"], 8)
    raw = engine.generate("hi", SamplingParams(8)).text
    found = [json.loads(line)["text"] for line in firp("generate", bundle, *arguments).stdout.splitlines()]
    assert found[:2] == [expected, raw]
    lines = firp("generate", bundle, *arguments, "--chat").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [expected, expected, found[2]]
    line = firp("generate", bundle, "--prompt", "hi", "--chat", "--max-new-tokens", 8).stdout
    assert line == f"{expected}\n"
    result = firp("bench", bundle, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 8, "--json")
    assert json.loads(result.stdout)["identical"] is True
