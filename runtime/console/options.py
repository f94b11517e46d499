"""Options that several commands have, and options made from the fields of a dataclass.

In: names, defaults, help. Out: decorators for click commands.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


class Repeating(click.Command):
    """A command whose repeatable options take several values at once, after its argument: `--data A
    B` is `--data A --data B`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the flag before every further value, then parse as usual."""
        repeatable = {
            flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts
        }
        expanded = []
        flag = None
        taken = 0
        greedy = bool(args) and not args[0].startswith("-")
        for arg in args:
            if arg.startswith("-") and len(arg) > 1:
                flag = arg if greedy and arg in repeatable else None
                taken = 0
            elif flag:
                if taken:
                    expanded.append(flag)
                taken += 1
            expanded.append(arg)
        return super().parse_args(ctx, expanded)


def options_from(defaults: Any, texts: Mapping[str, str]) -> Callable:
    """Options that fill fields of a dataclass, in the order of `texts`.

    defaults: the dataclass made without arguments; types and shown defaults are its own. texts:
    field -> help.
    """

    def add(command: Callable) -> Callable:
        for name, text in reversed(texts.items()):
            value = getattr(defaults, name)
            option = click.option(_flag(name), type=type(value), default=value, show_default=True, help=text)
            command = option(command)
        return command

    return add


def backend_option(names: Iterable[str], default: str | None = "cpu", text: str | None = None) -> Callable:
    """The option --backend. default: None where there is no usual one, and it must be given."""
    given = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("--backend", type=click.Choice(list(names)), help=text, **given)


def json_option(text: str) -> Callable:
    """The flag --json, which a command receives as `as_json`. text: what is printed."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
