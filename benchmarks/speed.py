"""Drafted against plain decoding on a bundle, as `firp bench` measures it, by file of prompts.

    python benchmarks/speed.py BUNDLE [FILE.jsonl ...] [--max-new-tokens 128]

The bundle is as `firp tune` left it. Without files: the demo model's held-out prompts.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
from table import Result

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", type=click.Path(path_type=Path), nargs=-1)
@click.option("--max-new-tokens", default=128, show_default=True)
def main(bundle, files, max_new_tokens):
    result = Result("speed", "Drafted against plain decoding")
    table = result.table(
        f"{max_new_tokens} tokens a prompt, greedy",
        *(
            "prompts",
            "plain tokens/s",
            "drafted",
            "tokens/step",
            "speedup",
            "by prompt",
            "quartiles",
            "identical",
        ),
    )
    for file in files or (PROMPTS,):
        command = [sys.executable, "-m", "firp.cli", "bench", bundle, "--prompts", file, "--json"]
        command += ["--max-new-tokens", str(max_new_tokens)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        low, median, high = found["speedup_quartiles"]
        table.add(
            file.name,
            f"{found['plain']['tokens_per_s']:.0f}",
            f"{found['drafted']['tokens_per_s']:.0f}",
            f"{found['drafted']['tokens_per_step']:.2f}",
            f"{found['speedup']:.2f}",
            f"{median:.2f}",
            f"{low:.2f} {high:.2f}",
            "yes" if found["identical"] else "no",
        )
    result.write()


if __name__ == "__main__":
    main()
