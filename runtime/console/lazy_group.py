"""A group of commands whose modules are imported when their verb is known.

In: a table verb -> (module, first sentence of its help). Out: a click group; its own help is made
from the table alone.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from firp.runtime.console.interrupts import quit_on_interrupt


def _help_alone() -> None:
    """Without a verb, show them."""
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


class LazyGroup(click.Group):
    """table: verb -> (module, help); the module holds the command under the verb's name."""

    def __init__(self, table: Mapping[str, tuple[str, str]], **settings: Any):
        super().__init__(invoke_without_command=True, callback=_help_alone, **settings)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in alphabetical order."""
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for a verb that is not in the table."""
        if cmd_name not in self.table:
            return None
        module, _ = self.table[cmd_name]
        with quit_on_interrupt():
            return getattr(import_module(module), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs as click would, from the table."""
        width = formatter.width - 6 - max(map(len, self.table))
        listed = [click.Command(verb, help=self.table[verb][1]) for verb in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.get_short_help_str(width)) for command in listed])
