"""Time of `firp export` by stage, verification included, its peak memory, and the time from an
engine's start to its first token.

    python benchmarks/export_stages.py MODEL [--predictors DIR] [--runs 3]

MODEL is a model directory or a GGUF file. Every run is a process of its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import click
from table import Result

EXPORT = """
import json, sys, time
started = time.perf_counter()
from pathlib import Path
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.transformers_library import quiet_transformers
from firp.export.verify.checks import verify_or_fail
from firp.runtime.machine import peak_bytes
quiet_transformers()
seconds, last = {}, [started, "start"]
def progress(stage, done=0, total=None):
    now = time.perf_counter()
    seconds[last[1]] = seconds.get(last[1], 0) + now - last[0]
    last[:] = [now, stage]
model, bundle, predictors = (Path(text) if text else None for text in sys.argv[1:])
export_bundle(ExportOptions(model, bundle, predictors),
              lambda folder: verify_or_fail(folder, model, progress), progress)
progress("end")
print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))
"""
LOAD = """
import json, sys, time
started = time.perf_counter()
from firp import Engine, SamplingParams
engine = Engine.load(sys.argv[1])
loaded = time.perf_counter()
engine.generate([5, 6, 7], SamplingParams(1))
print(json.dumps({"loaded": loaded - started, "first token": time.perf_counter() - started}))
"""


def run(script: str, *arguments: object) -> dict:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--predictors", type=click.Path(path_type=Path, exists=True))
@click.option("--runs", default=3, show_default=True)
def main(model, predictors, runs):
    stages = defaultdict(list)
    totals, peaks = [], []
    loads = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(runs):
            bundle = Path(scratch) / str(number)
            found = run(EXPORT, model, bundle, predictors or "")
            for stage, seconds in found["seconds"].items():
                stages[stage].append(seconds)
            totals.append(sum(found["seconds"].values()))
            peaks.append(found["peak_bytes"] / 2**30)
            for name, seconds in run(LOAD, bundle).items():
                loads[name].append(seconds)
    result = Result("export_stages", "Export of a real LLM, by stage")
    beside = " with predictors" if predictors else ""
    table = result.table(f"{model.name}{beside}, {runs} runs", "stage", "seconds", "least to most")
    for stage, seconds in [*stages.items(), ("all", totals), *loads.items()]:
        table.add(stage, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f} to {max(seconds):.1f}")
    result.note(f"Peak memory {statistics.median(peaks):.2f} GiB. `loaded` and `first token`: a new process.")
    result.write()


if __name__ == "__main__":
    main()
