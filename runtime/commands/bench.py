"""The `bench` command: prompts in, plain against drafted decoding out. The exit status is 1 when
tokens differ beyond a near tie.
"""

import json

import click

from firp.runtime.backends.registry import BACKENDS
from firp.runtime.commands.asked import content, sampling_options
from firp.runtime.commands.shown import tuning_remark
from firp.runtime.console.options import PATH, backend_option, json_option
from firp.runtime.console.progress import messages
from firp.runtime.console.tables import print_table, results
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError
from firp.runtime.loop.text import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning.bench import BenchResult
from firp.runtime.tuning.bench import bench as compare


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--prompts", type=PATH, required=True, help="Prompt file, as for generate.")
@sampling_options
@backend_option(BACKENDS)
@json_option("Print one JSON object.")
def bench(bundle, prompts, backend, as_json, **sampling):
    """Decode the prompts plainly and drafted, alternating in one process, and compare."""
    params = SamplingParams(**sampling)
    requests = read_prompts(prompts)
    engine = Engine.load(bundle, backend)
    if remark := tuning_remark(engine):
        messages.print(remark)
    result = compare(engine, [content(request) for request in requests], params)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print_bench(result)
    if wrong := [difference for difference in result.differences if not difference.near_tie]:
        raise CheckFailedError("drafted decoding differs from plain", got=f"{len(wrong)} prompts", expected=0)


def print_bench(result: BenchResult) -> None:
    """Print the rates, the speedup and every difference."""
    print_table(
        ("decoding", "tokens/s", "ms/step", "tokens/step"),
        [
            (name, f"{rate.tokens_per_s:.0f}", f"{rate.ms_per_step:.2f}", f"{rate.tokens_per_step:.2f}")
            for name, rate in (("plain", result.plain), ("drafted", result.drafted))
        ],
        f"{result.tokens} tokens on {result.device} ({result.backend}), prefill not counted",
    )
    low, median, high = result.speedup_quartiles
    results.print(
        f"speedup {result.speedup:.2f} (by prompt: median {median:.2f}, quartiles {low:.2f} to {high:.2f})"
    )
    results.print(f"identical tokens: {'no' if result.differences else 'yes'}")
    for found in result.differences:
        what = "near tie" if found.near_tie else "difference"
        results.print(f"{what}: prompt {found.prompt + 1}, token {found.position}, margin {found.margin:.2g}")
    if result.cuda_graphs:
        counts = ", ".join(f"{count} {name}" for name, count in result.cuda_graphs.items())
        results.print(f"CUDA graphs: {counts}")
    if result.speedup < 1:
        results.print("drafting does not pay on this device: decode with --plain, or let firp tune choose")
