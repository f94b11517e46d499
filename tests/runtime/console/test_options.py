"""Options made from dataclasses, and those that commands share."""

from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from firp.runtime.console.options import Repeating, backend_option, json_option, options_from


@dataclass(frozen=True)
class Settings:
    rows_of_a_pass: int = 7
    share: float = 0.5


def run(command, *arguments):
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def command():
    @click.command()
    @options_from(Settings(), {"rows_of_a_pass": "How many.", "share": "Of all."})
    def show(**values):
        click.echo(Settings(**values))

    return show


def test_defaults_are_those_of_the_dataclass(command):
    assert run(command).output == f"{Settings()}\n"


def test_a_given_value_has_the_type_of_the_default(command):
    assert run(command, "--rows-of-a-pass", "3").output == f"{Settings(rows_of_a_pass=3)}\n"
    assert run(command, "--rows-of-a-pass", "0.5").exit_code == 2


def test_help_shows_defaults_in_the_order_of_the_texts(command):
    text = " ".join(run(command, "--help").output.split())
    rows, share = text.index("How many. [default: 7]"), text.index("Of all. [default: 0.5]")
    assert rows < share


def test_the_backend_is_one_of_the_names():
    @click.command()
    @backend_option(["cpu", "abacus"])
    def show(backend):
        click.echo(backend)

    assert run(show).output == "cpu\n"
    assert run(show, "--backend", "abacus").output == "abacus\n"
    assert "'tpu' is not one of" in run(show, "--backend", "tpu").output


def test_a_backend_without_a_default_must_be_given():
    @click.command()
    @backend_option(["a", "b"], default=None)
    def show(backend):
        click.echo(backend)

    assert "Missing option '--backend'" in run(show).output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m", "--data", "a", "b", "--json"], "('a', 'b') True"),
        (["m", "--data", "a", "--data", "b"], "('a', 'b') False"),
        (["--data", "a", "m"], "('a',) False"),  # before the argument a flag takes one value
    ],
)
def test_several_values_may_follow_one_flag_after_the_argument(arguments, expected):
    @click.command(cls=Repeating)
    @click.argument("model")
    @click.option("--data", multiple=True)
    @json_option("As JSON.")
    def show(model, data, as_json):
        click.echo(f"{data} {as_json}")

    assert run(show, *arguments).output == f"{expected}\n"
