"""Wrong usage as every other mistake: one line of what, got, expected and how to fix it.

In: an error of click. Out: a FirpError.
"""

import re

import click

from firp.runtime.errors import FirpError

_BAD = re.compile(
    r"Invalid value for (.+?): (.+) is not (?:a valid |in the range )?(.+?)(?: range)?", re.DOTALL
)


def usage_error(error: click.ClickException) -> FirpError:
    """The same mistake in our words; click's own where it says it otherwise."""
    context = getattr(error, "ctx", None)
    fix = f"see {context.command_path if context else 'firp'} --help"
    if isinstance(error, click.NoSuchOption):
        near = " or ".join(error.possibilities or ())
        return FirpError("no such option", got=error.option_name, expected=near or None, fix=fix)
    message = error.format_message().rstrip(".")
    if found := _BAD.fullmatch(message):
        name, got, expected = found.groups()
        return FirpError("bad " + name.replace("'", ""), got=got, expected=expected, fix=fix)
    return FirpError(message[:1].lower() + message[1:], fix=fix)
