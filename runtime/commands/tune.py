"""The `tune` command: a bundle in, the choice for this device stored in it and shown."""

import json

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.bundle.calibration import TEXTS
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.commands.shown import print_basis, print_choice, print_latency
from firp.runtime.console.options import PATH, backend_option, json_option
from firp.runtime.console.progress import progress_bar
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.tuning.tune import tune as choose_tree


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--text",
    type=click.Choice(TEXTS),
    default=TEXTS[0],
    show_default=True,
    help="What it is to be fastest at.",
)
@click.option("--prompts", type=PATH, help="Prompt file; try the best trees on it, and lookup too.")
@backend_option(BACKENDS)
@json_option("Print the choice, with the latency table, as one JSON object.")
def tune(bundle, text, prompts, backend, as_json):
    """Measure latency against rows on this device, choose the fastest tree, and store the choice in
    BUNDLE.
    """
    asked = [prompt.content for prompt in read_prompts(prompts)] if prompts else None
    engine = Engine.load(bundle, backend)
    with progress_bar() as bar:
        choice = choose_tree(engine, text, asked, bar.update)
    if not asked:
        print_basis(engine)
    if as_json:
        print(json.dumps(to_json(choice)))
    else:
        print_latency(choice.latency)
        print_choice(choice)
