"""What a GPU makes of it: step latency against rows and cached tokens, host overhead, and drafted
against plain decoding.

    python benchmarks/gpu.py --backend tensorrt|tensorrt-rtx|cuda [--shape 1b --shape 7b] [--folder
    DIR]

Models with random weights serve for latency; the demo model, which is trained, for tokens per
second and near ties. All in float16. `--backend cpu --shape tiny` runs the same in float32 on a
CPU, to test this script. A pass is one of verification: every row is decoded, and top lists come
back. The share of bandwidth is that of a pass of one row: weights and cache over the measured peak.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from random_model import SHAPES, make_checkpoint, make_predictors

from firp.calib.targets.cost import Point, pass_cost
from firp.calib.targets.peaks import cpu_peaks, cuda_copy_peaks
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.commands.build import run_build
from firp.runtime.backends.cuda import CudaMemory, load_cuda
from firp.runtime.backends.registry import BACKENDS
from firp.runtime.bundle.limits import Limits
from firp.runtime.console.tables import print_table
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig, chain
from firp.runtime.tuning.bench import bench
from firp.runtime.tuning.parity import compare_trees

ROWS, CACHED = (1, 4, 8, 16, 32, 64), (128, 1024, 4096)
DEMO_MODEL = Path(__file__).parent.parent / "tests" / "demo_model"
PASSES, WARM_UP = 40, 5


def make_bundle(folder: Path, model: Path, predictors: Path, backend: str) -> Engine:
    dtype = "float32" if backend == "cpu" else "float16"
    bundle = folder / "bundle"
    export_bundle(ExportOptions(model, bundle, predictors, dtype=dtype))
    if backend.startswith("tensorrt"):
        run_build(bundle, backend, Limits(max(CACHED) + 256, 1, max(ROWS)))
    return Engine.load(bundle, backend, check_hashes=False)


def latency(engine: Engine, bandwidth: float) -> None:
    """Milliseconds of a whole pass by rows and cached tokens, and how much of it the graphs do not
    account for.
    """
    session, lines = engine.session(max(CACHED) + max(ROWS), max(ROWS)), []
    for cached in CACHED:
        session.kv.fill(np.random.default_rng(0), cached)
        passes = {rows: [] for rows in ROWS}
        for turn in range(PASSES + WARM_UP):
            for rows in ROWS:
                before, started = sum(session.spent_ms.values()), time.perf_counter()
                session.forward(chain([1] * rows), [], logits=False)
                total = (time.perf_counter() - started) * 1e3
                if turn >= WARM_UP:
                    passes[rows].append((total, total - (sum(session.spent_ms.values()) - before)))
        one = statistics.median(total for total, _ in passes[1])
        share = moved_bytes(engine, cached) / bandwidth / 1e6 / one
        for rows, times in passes.items():
            totals, hosts = zip(*times, strict=True)
            low, median, high = statistics.quantiles(totals, n=4)
            host = statistics.median(hosts)
            lines.append(
                (
                    str(cached),
                    str(rows),
                    f"{median:.3f} [{low:.3f} {high:.3f}]",
                    f"{median / one:.2f}",
                    f"{host:.3f}",
                    f"{host / median:.0%}",
                    f"{share:.0%}" if rows == 1 else "",
                )
            )
    names = ("cached", "rows", "ms [quartiles]", "to 1 row", "host ms", "host", "bandwidth")
    print_table(names, lines, f"a pass on {engine.backend.device}, {engine.manifest.precision.compute}")


def moved_bytes(engine: Engine, cached: int) -> int:
    """Of both halves, in a pass of one row."""
    halves = ("lower", "upper")
    return sum(pass_cost(engine.manifest, graph, Point(1, cached, 1)).moved_bytes for graph in halves)


def trained(engine: Engine, count: int) -> None:
    """Tokens per second, plain and drafted, and how often rounding turns a pick."""
    prompts = [
        engine.encode(prompt.text) for prompt in read_prompts(DEMO_MODEL / "held_out_prompts.jsonl")[:count]
    ]
    result = bench(engine, prompts, SamplingParams(128))
    low, median, high = result.speedup_quartiles
    print(
        f"demo model, {count} prompts x 128 tokens, {engine.manifest.precision.compute}: plain {result.plain.tokens_per_s:.0f} tokens/s, "
        f"drafted {result.drafted.tokens_per_s:.0f} ({result.drafted.tokens_per_step:.2f} a step), speedup {result.speedup:.2f}, "
        f"by prompt {median:.2f} [{low:.2f} {high:.2f}]; CUDA graphs {result.cuda_graphs}"
    )
    trees = {"16 rows": TreeConfig("dynamic", 16, None), "draft pass": TreeConfig("dynamic", 8, 0)}
    for comparison in compare_trees(
        engine, prompts, [SamplingParams(96), SamplingParams(96, temperature=0.8, seed=1)], trees
    ):
        ties, wrong = len(comparison.differences) - len(comparison.unexcused), len(comparison.unexcused)
        margins = sorted(each.margin for each in comparison.differences)
        print(
            f"{comparison.name}: {comparison.tokens} tokens, near ties {ties}, other differences {wrong}, margins {margins[:5]}"
        )


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--shape",
    "shapes",
    type=click.Choice(list(SHAPES)),
    multiple=True,
    default=("1b", "7b"),
    show_default=True,
)
@click.option("--prompts", default=40, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to work; default: the system's temporary folder."
)
def main(backend, shapes, prompts, folder):
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            model = Path(scratch) / "model"
            parameters = make_checkpoint(model, shape, "float16")
            engine = make_bundle(
                Path(scratch), model, make_predictors(Path(scratch) / "predictors", model), backend
            )
            peaks = (
                cpu_peaks(engine.backend.options, "float32")
                if backend == "cpu"
                else cuda_copy_peaks(CudaMemory(load_cuda()))
            )
            print(
                f"{shape}: {parameters:,} parameters; peak bandwidth {peaks.bandwidth_gb_per_s:.0f} GB/s ({peaks.measured_by})"
            )
            latency(engine, peaks.bandwidth_gb_per_s)
            del engine
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        trained(make_bundle(Path(scratch), DEMO_MODEL, DEMO_MODEL / "predictors", backend), prompts)


if __name__ == "__main__":
    main()
