"""Options that several commands ask for: sampling, and variables of a chat template."""

import json
from typing import Any

import click

from firp.runtime.chat.messages import check_variables
from firp.runtime.console.options import options_from
from firp.runtime.sampling import SamplingParams

_SAMPLING = {
    "max_new_tokens": "Tokens to decode at most.",
    "temperature": "0: greedy.",
    "top_k": "Keep this many best candidates; 0: all.",
    "top_p": "Keep the smallest set of best candidates with this probability.",
    "seed": "The same seed gives the same tokens.",
}
sampling_options = options_from(SamplingParams(), _SAMPLING)
# an answer ends by itself, as a text that is continued need not
answer_options = options_from(SamplingParams(max_new_tokens=1024), _SAMPLING)


def _variables(context: click.Context, param: click.Parameter, text: str | None) -> dict[str, Any]:
    try:
        return check_variables(json.loads(text) if text is not None else None)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error!s:.60}") from error


template_option = click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    callback=_variables,
    help="What the chat template may read besides, such as '{\"enable_thinking\": false}'.",
)
