"""Two checkouts side by side: the time of a step outside the graphs, and every token.

    python benchmarks/before_after.py OLD_CHECKOUT [--rounds 5] [--prompts 20]

Each checkout exports the demo model with its own exporter, then decodes in a process of its own; the
two take turns. OLD_CHECKOUT is a folder named `firp` (git worktree add DIR/firp COMMIT). Tokens:
held-out prompts x 96, greedy and at temperature 0.8, plainly and with three trees.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
WAYS = {"plain": None, "6 rows": (6, None), "16 rows": (16, None), "6 rows, draft pass": (6, 0)}


def decode(bundle: str, prompts: str) -> None:
    """Print tokens and milliseconds outside the graphs a step, as JSON; runs in either checkout."""
    from firp import Engine, SamplingParams, TreeConfig

    engine = Engine.load(bundle, check_hashes=False)
    found = {"tokens": [], "outside_ms": {}}
    for temperature in (0.0, 0.8):
        params = SamplingParams(96, temperature=temperature, top_p=0.95 if temperature else 1.0, seed=3)
        for way, shape in WAYS.items():
            options = {"tree": TreeConfig("dynamic", *shape)} if shape else {"plain": True}
            times = []
            for prompt in json.loads(prompts):
                run = engine.generate(prompt, params, **options)
                found["tokens"].append(run.token_ids)
                if run.stats.steps:
                    times.append(run.stats.outside_ms / run.stats.steps)
            found["outside_ms"][f"{way}, temperature {temperature:g}"] = statistics.median(times)
    print(json.dumps(found))


def run(checkout: Path, *arguments: str) -> str:
    """Run Python with this checkout's firp; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def export(checkout: Path, bundle: Path) -> None:
    model = str(checkout / "tests" / "demo_model")  # each has the trees that its tuner knows
    options = ["--predictors", f"{model}/predictors", "--no-verify", "--no-tune"]
    run(checkout, "-m", "firp.cli", "export", model, "-o", str(bundle), *options)


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--prompts", "count", default=20, show_default=True)
def main(old, rounds, count):
    from table import Result  # of this checkout, and not for the processes that run the other

    if old.resolve().name != "firp":
        raise click.UsageError("the old checkout must be a folder named firp.")
    lines = (ROOT / "tests" / "demo_model" / "held_out_prompts.jsonl").read_text("utf-8").splitlines()[:count]
    prompts = json.dumps([json.loads(line)["prompt"] for line in lines])
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch) / "firp"
        here.symlink_to(ROOT)
        checkouts = {"old": old.resolve(), "new": here}
        for name, checkout in checkouts.items():
            export(checkout, Path(scratch) / name)
        found = {"old": [], "new": []}
        for turn in range(rounds):
            for name in ("old", "new") if turn % 2 else ("new", "old"):
                bundle = str(Path(scratch) / name)
                output = run(checkouts[name], __file__, "--decode", bundle, prompts)
                found[name].append(json.loads(output))
    result = Result("before_after", f"Before and after, {rounds} rounds in turns")
    table = result.table(
        "Outside the graphs, ms a step", "decoding", "old", "new", "new / old: median", "lowest", "highest"
    )
    for way in found["old"][0]["outside_ms"]:
        old_ms, new_ms = ([turn["outside_ms"][way] for turn in found[name]] for name in ("old", "new"))
        ratios = sorted(new / old for old, new in zip(old_ms, new_ms, strict=True))
        table.add(
            way,
            *(f"{statistics.median(values):.3f}" for values in (old_ms, new_ms)),
            *(f"{ratio:.2f}" for ratio in (statistics.median(ratios), ratios[0], ratios[-1])),
        )
    tokens = [turn["tokens"] for runs in found.values() for turn in runs]
    same = all(other == tokens[0] for other in tokens)
    result.note(
        f"{sum(map(len, tokens[0]))} tokens, {'all identical' if same else 'NOT identical'} in old and new."
    )
    result.write()
    sys.exit(not same)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--decode"]:
        decode(*sys.argv[2:])
    else:
        main()
