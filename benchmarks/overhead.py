"""Python time per step outside the graphs, and cache bytes moved per step, at a tree of 16 rows.

python benchmarks/overhead.py BUNDLE [--steps 1000] [--rows 16]
"""

import statistics
from pathlib import Path

import click
from table import Result

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.engine import Engine
from firp.runtime.loop.decode import decode
from firp.runtime.loop.picker import Picker
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", default=1000, show_default=True)
@click.option("--rows", default=16, show_default=True)
def main(bundle, steps, rows):
    engine = Engine.load(bundle)
    c = engine.model
    slot_bytes = (
        c.slabs
        * c.attention.num_key_value_heads
        * c.attention.head_dim
        * DTYPES[engine.manifest.precision.cache].itemsize
    )
    result = Result("overhead", "A step outside the graphs")
    table = result.table(
        f"{steps} steps of {rows} rows",
        *("draft sources", "temperature", "median (ms)", "p90", "p99", "moved / accepted cache bytes"),
    )
    for sources in (1, 4, None):
        for temperature in (0.0, 0.8):
            params = SamplingParams(
                400, temperature=temperature, top_p=0.95 if temperature else 1.0, ignore_eos=True
            )
            outside = []
            moved_ratio = []
            for prompt in read_prompts(PROMPTS):
                tree = TreeConfig("dynamic", rows, sources)
                request = engine.request(prompt.text, params)
                needs = request.needs(tree, engine.manifest.num_predictors)
                session = engine.session(needs.capacity, needs.rows)
                before = 0
                for step in decode(session, request, engine.drafter(tree, not temperature), Picker(request)):
                    moved = session.batch.kv.moved_bytes - before
                    before = session.batch.kv.moved_bytes
                    if step.rows == rows:
                        outside.append(step.times.outside_ms)
                        moved_ratio.append(moved / ((step.accept_length + 1) * slot_bytes))
                if len(outside) >= steps:
                    break
            outside = outside[:steps]
            percentiles = statistics.quantiles(outside, n=100)
            table.add(
                sources or "T",
                temperature,
                *(f"{percentiles[percent - 1]:.3f}" for percent in (50, 90, 99)),
                f"{min(moved_ratio):.2f} to {max(moved_ratio):.2f}",
            )
    result.write()


if __name__ == "__main__":
    main()
