"""The door: what is loaded before a verb is known, and how a start is interrupted."""

import importlib
import signal
import subprocess
import sys

import pytest
from support.command_line import start, wait_for

import firp
from firp.cli import COMMANDS, command_line

HEAVY = {"numpy", "onnxruntime", "torch", "transformers", "tokenizers", "rich", "onnx_ir"}
MODULES = "; print('modules', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
HIDDEN = "import sys; sys.modules['{module}'] = None; from firp.cli import main; main()"


def loaded_by(script):
    """Top-level modules that a script leaves loaded."""
    program = f"import sys\ntry:\n    {script}\nfinally:\n    None{MODULES}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("flag", ["-h", "--help", "--version"])
def test_help_and_version_load_nothing_heavy(flag):
    found = loaded_by(f"sys.argv = ['firp', '{flag}']; from firp.cli import main; main()")
    assert "click" in found
    assert not found & HEAVY


def test_importing_firp_loads_nothing_heavy():
    found = loaded_by("import firp")
    assert "firp" in found
    assert not found & (HEAVY | {"click"})


def test_importing_the_engine_loads_no_backend():
    found = loaded_by("from firp import Engine")
    assert "numpy" in found
    assert not found & {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "rich", "click"}


@pytest.mark.parametrize("name", firp.__all__)
def test_every_public_name_is_where_it_is_listed_and_where_it_lives(name):
    assert name in dir(firp)
    assert getattr(firp, name).__module__.startswith("firp.runtime.")


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'firp' has no attribute 'Motor'"):
        _ = firp.Motor


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_table_holds_the_help_of_the_command(verb):
    module, text = COMMANDS[verb]
    command = getattr(importlib.import_module(module), verb)
    assert command.name == verb
    assert command.get_short_help_str(limit=1000) == text


def test_help_lists_every_verb(capsys):
    command_line().main(["-h"], prog_name="firp", standalone_mode=False)
    listed = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line] == sorted(COMMANDS)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["generate", "b", "--prompt", "x"], "firp.runtime.errors"),
        (["generate", "b", "--prompt", "x"], "click.core"),
        (["generate", "b", "--prompt", "x"], "numpy"),
        (["calibrate", "m", "-o", "p", "--data", "d"], "torch._C"),
    ],
)
def test_a_signal_while_modules_are_imported_gets_one_line(arguments, module, how):
    """`-X importtime` says on stderr when a module is there."""
    process = start(*arguments, command=[sys.executable, "-X", "importtime", "-m", "firp.cli"])
    wait_for(process.stderr, f" {module}\n")
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    said = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert said == ["error: interrupted"]
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("module", "arguments", "line"),
    [
        (
            "torch",
            ["export", "MODEL", "-o", "OUT"],
            "this command needs torch. Fix: pip install 'firp[export]'",
        ),
        (
            "transformers",
            ["export", "MODEL", "-o", "OUT"],
            "this command needs transformers. Fix: pip install 'firp[export]'",
        ),
        (
            "torch",
            ["calibrate", "MODEL", "-o", "OUT", "--data", "x"],
            "this command needs torch. Fix: pip install 'firp[export]'",
        ),
        (
            "onnxruntime",
            ["generate", "BUNDLE", "--prompt", "x"],
            "backend cpu needs onnxruntime. Fix: pip install 'firp[cpu]', or 'firp[gpu]' for an NVIDIA GPU",
        ),
        (
            "onnxruntime",
            ["generate", "BUNDLE", "--prompt", "x", "--backend", "cuda"],
            "backend cuda needs onnxruntime. Fix: pip install 'firp[gpu]'",
        ),
        (
            "llguidance",
            ["generate", "BUNDLE", "--prompt", "x", "--regex", "a", "--plain"],
            "structured output needs llguidance | got not installed. Fix: pip install 'firp[structured]'",
        ),
        (
            "polygraphy",
            ["profile", "BUNDLE"],
            "profiling needs polygraphy | got not installed. Fix: pip install 'firp[profile]'",
        ),
    ],
)
def test_a_missing_package_gets_one_line_with_its_extra(
    module, arguments, line, demo_bundle, pytestconfig, tmp_path
):
    places = {
        "MODEL": str(pytestconfig.rootpath / "tests" / "demo_model"),
        "BUNDLE": str(demo_bundle),
        "OUT": str(tmp_path / "out"),
    }
    command = [sys.executable, "-c", HIDDEN.format(module=module), *(places.get(a, a) for a in arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_inspect_needs_no_backend(demo_bundle):
    command = [sys.executable, "-c", HIDDEN.format(module="onnxruntime"), "inspect", str(demo_bundle)]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(("given", "seen"), [(None, "passive"), ("active", "active")])
def test_torch_s_threads_wait_passively_unless_the_user_says_otherwise(given, seen, monkeypatch, capfd):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    script = """
import os, sys
import firp.cli as door
door.command_line = lambda: print(os.environ["OMP_WAIT_POLICY"]) or sys.exit(0)
door.main()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert capfd.readouterr().out == f"{seen}\n"
