"""Speed on a GPU: step latency against rows and cached tokens, host overhead, and drafted
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
from table import Result

from firp.calib.targets.cost import Point, pass_cost
from firp.calib.targets.peaks import cpu_peaks, cuda_copy_peaks
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.commands.build import run_build
from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.backends.cuda_runtime import load_cuda
from firp.runtime.backends.registry import BACKENDS
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.bench import bench
from firp.runtime.tuning.parity import compare_trees

ROWS = (1, 4, 8, 16, 32, 64)
CACHED = (128, 1024, 4096)
DEMO_MODEL = Path(__file__).parent.parent / "tests" / "demo_model"
PASSES, WARM_UP = 40, 5


def make_bundle(folder: Path, model: Path, predictors: Path, backend: str) -> Engine:
    dtype = "float32" if backend == "cpu" else "float16"
    bundle = folder / "bundle"
    export_bundle(ExportOptions(model, bundle, predictors, dtype=dtype))
    if backend.startswith("tensorrt"):
        run_build(bundle, backend, Limits(max(CACHED) + 256, 1, max(ROWS)))
    return Engine.load(bundle, backend, check_hashes=False)


def latency(engine: Engine, bandwidth: float, result: Result, model: str) -> None:
    """Add a table: milliseconds of a whole pass by rows and cached tokens, and how much of it the
    graphs do not account for. bandwidth: the device's peak in GB/s.
    """
    session = engine.session(max(CACHED) + max(ROWS), max(ROWS))
    table = result.table(
        f"A pass of {model} on {engine.backend.device}, {engine.manifest.precision.compute}",
        *("cached", "rows", "ms [quartiles]", "to 1 row", "host ms", "host", "bandwidth"),
    )
    for cached in CACHED:
        session.batch.kv.fill(np.random.default_rng(0), cached)
        passes = {rows: [] for rows in ROWS}
        for turn in range(PASSES + WARM_UP):
            for rows in ROWS:
                before = sum(session.spent_ms.values())
                started = time.perf_counter()
                session.forward(PassPlan(chain([1] * rows), bring_logits=False))
                total = (time.perf_counter() - started) * 1e3
                if turn >= WARM_UP:
                    passes[rows].append((total, total - (sum(session.spent_ms.values()) - before)))
        one = statistics.median(total for total, _ in passes[1])
        share = moved_bytes(engine, cached) / bandwidth / 1e6 / one
        for rows, times in passes.items():
            totals, hosts = zip(*times, strict=True)
            low, median, high = statistics.quantiles(totals, n=4)
            host = statistics.median(hosts)
            table.add(
                cached,
                rows,
                f"{median:.3f} [{low:.3f} {high:.3f}]",
                f"{median / one:.2f}",
                f"{host:.3f}",
                f"{host / median:.0%}",
                f"{share:.0%}" if rows == 1 else "",
            )


def moved_bytes(engine: Engine, cached: int) -> int:
    """Bytes that both halves move in a pass of one row."""
    halves = ("lower", "upper")
    return sum(pass_cost(engine.manifest, graph, Point(1, cached, 1)).moved_bytes for graph in halves)


def trained(engine: Engine, count: int, result: Result) -> None:
    """Add two tables of the demo model: tokens per second, plain and drafted, and how often rounding
    turns a pick.
    """
    prompts = [
        engine.encode(prompt.text) for prompt in read_prompts(DEMO_MODEL / "held_out_prompts.jsonl")[:count]
    ]
    found = bench(engine, prompts, SamplingParams(128))
    low, median, high = found.speedup_quartiles
    speed = result.table(
        f"Demo model, {count} prompts x 128 tokens, {engine.manifest.precision.compute}",
        *("plain tokens/s", "drafted", "tokens/step", "speedup", "by prompt [quartiles]", "CUDA graphs"),
    )
    speed.add(
        f"{found.plain.tokens_per_s:.0f}",
        f"{found.drafted.tokens_per_s:.0f}",
        f"{found.drafted.tokens_per_step:.2f}",
        f"{found.speedup:.2f}",
        f"{median:.2f} [{low:.2f} {high:.2f}]",
        found.cuda_graphs,
    )
    trees = {"16 rows": TreeConfig("dynamic", 16, None), "draft pass": TreeConfig("dynamic", 8, 0)}
    parity = result.table(
        "Drafted against plain tokens", "tree", "tokens", "near ties", "other differences", "margins"
    )
    params = [SamplingParams(96), SamplingParams(96, temperature=0.8, seed=1)]
    for comparison in compare_trees(engine, prompts, params, trees):
        wrong = len(comparison.unexcused)
        margins = sorted(difference.margin for difference in comparison.differences)
        parity.add(
            comparison.name,
            comparison.tokens,
            len(comparison.differences) - wrong,
            wrong,
            " ".join(f"{margin:.1e}" for margin in margins[:5]),
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
    result = Result(f"gpu_{backend.replace('-', '_')}", f"Passes and speed on a device, backend {backend}")
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            model = Path(scratch) / "model"
            parameters = make_checkpoint(model, SHAPES[shape], "float16")
            engine = make_bundle(
                Path(scratch), model, make_predictors(Path(scratch) / "predictors", model), backend
            )
            peaks = (
                cpu_peaks(engine.backend.options(), "float32")
                if backend == "cpu"
                else cuda_copy_peaks(CudaMemory(load_cuda()))
            )
            latency(engine, peaks.bandwidth_gb_per_s, result, f"{shape} ({parameters:,} parameters)")
            result.note(
                f"Peak bandwidth beside {shape}: {peaks.bandwidth_gb_per_s:.0f} GB/s ({peaks.measured_by})."
            )
            del engine
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        trained(make_bundle(Path(scratch), DEMO_MODEL, DEMO_MODEL / "predictors", backend), prompts, result)
    result.write()


if __name__ == "__main__":
    main()
