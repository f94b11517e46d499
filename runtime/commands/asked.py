"""Options that several commands ask for: sampling, what the text must be, and variables of a chat
template.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from firp.runtime.chat.messages import check_variables
from firp.runtime.console.options import PATH, options_from
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.structured import StructuredOutput

_SAMPLING = {
    "max_new_tokens": "Tokens to decode at most.",
    "temperature": "0: greedy.",
    "top_k": "Keep this many best candidates; 0: all.",
    "top_p": "Keep the smallest set of best candidates with this probability.",
    "min_p": "Keep candidates with at least this share of the best one's probability.",
    "repetition_penalty": "Of tokens that came before, the prompt's too; 1: none.",
    "presence_penalty": "Of tokens that were generated; 0: none.",
    "frequency_penalty": "The same, for each time that one was.",
    "seed": "The same seed gives the same tokens.",
}
sampling_options = options_from(SamplingParams(), _SAMPLING)
# an answer ends by itself, as a text that is continued need not
answer_options = options_from(SamplingParams(max_new_tokens=1024), _SAMPLING)


def _biases(context: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in (pair.split("=") for pair in pairs)}
    except ValueError as error:
        got = f"{' '.join(pairs):.60}"
        raise FirpError("bad --logit-bias", got=got, expected="ID=BIAS, an integer and a number") from error


def token_options(command: Callable) -> Callable:
    """Options about single tokens, which are named by their ids."""
    several = {"type": int, "multiple": True, "metavar": "ID"}
    all_of_none = {**several, "callback": lambda context, param, ids: ids or None}
    bias = {"multiple": True, "metavar": "ID=BIAS", "callback": _biases}
    for option in (
        click.option("--stop-token-ids", help="End with any of these tokens.", **several),
        click.option("--banned-token-ids", help="Never pick these tokens.", **several),
        click.option("--allowed-token-ids", help="Pick no other tokens than these.", **all_of_none),
        click.option("--logit-bias", help="Added to the logits of these tokens.", **bias),
        options_from(SamplingParams(), {"min_tokens": "Tokens before which no end token is picked."}),
    ):
        command = option(command)
    return command


def structured_options(command: Callable) -> Callable:
    """Options that say what the text must be; `structured_output` reads them."""
    for option in (
        click.option("--choice", multiple=True, help="The text is one of these."),
        click.option("--grammar", type=PATH, help="The text follows the Lark grammar in this file."),
        click.option("--regex", help="The text matches this regular expression."),
        click.option("--json-schema", type=PATH, help="The text is JSON of the schema in this file."),
    ):
        command = option(command)
    return command


def structured_output(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choice: tuple[str, ...]
) -> StructuredOutput | None:
    """What the text must be; None where nobody asks. Raises FirpError."""
    given = {
        "json_schema": _content(json_schema, "the JSON schema"),
        "regex": regex,
        "lark": _content(grammar, "the grammar"),
        "choice": choice or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return StructuredOutput(**given) if given else None


def _content(file: Path | None, what: str) -> str | None:
    try:
        return file.read_text("utf-8-sig") if file is not None else None
    except OSError as error:
        raise FirpError(f"cannot read {what}", got=f"'{file}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FirpError(f"{what} is not UTF-8", got=f"'{file}': byte {error.start}") from error


def _variables(context: click.Context, param: click.Parameter, text: str | None) -> dict[str, Any]:
    try:
        return check_variables(json.loads(text) if text is not None else None)
    except (ValueError, RecursionError) as error:
        got = f"{text:.60}: {error!s:.60}"
        raise FirpError("bad --chat-template-kwargs", got=got, expected="a JSON object") from error


template_option = click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    callback=_variables,
    help="What the chat template may read besides, such as '{\"enable_thinking\": false}'.",
)
