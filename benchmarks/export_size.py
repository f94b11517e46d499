"""Time and memory of exporting a synthetic 1.1-billion-parameter Llama checkpoint in its own dtype.

    python benchmarks/export_size.py [--dtype bfloat16] [--folder DIR]

The checkpoint (TinyLlama's shape, random weights, sharded) is made first, in a child process; the
export runs in another, whose time by stage and peak resident memory are printed. Needs about 5 GB
of disk.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from random_model import SHAPES, make_checkpoint
from table import Result

EXPORT = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from firp.export.bundle.writer import ExportOptions, export_bundle
seconds, last = {}, [started, "start and weights"]
def progress(stage, done, total):
    now = time.perf_counter()
    name = "hashing" if stage == "hashing" else "start and weights"
    if name != last[1]:
        seconds[last[1]] = now - last[0]
        last[:] = [now, name]
export_bundle(ExportOptions(Path(sys.argv[1]), Path(sys.argv[2]), dtype=sys.argv[3]), progress=progress)
now = time.perf_counter()
seconds[last[1]] = now - last[0]
print(json.dumps({"seconds": seconds, "total_s": now - started,
                  "peak_resident_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


@click.command()
@click.option(
    "--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float16", "float32"])
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to work; default: the system's temporary folder."
)
@click.option("--runs", default=3, show_default=True)
def main(dtype, folder, runs):
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = Path(scratch) / "model"
        parameters = make_checkpoint(model, SHAPES["1b"], dtype)
        size = sum(file.stat().st_size for file in model.iterdir()) / 2**30
        result = Result("export_size", "Export of a 1.1-billion-parameter checkpoint")
        table = result.table(
            f"{parameters:,} parameters, {size:.2f} GiB, {dtype}",
            *("run", "start and weights (s)", "hashing (s)", "peak resident (MiB)"),
        )
        for run in range(runs):
            output = Path(scratch) / f"bundle-{run}"
            done = subprocess.run(
                [sys.executable, "-c", EXPORT, str(model), str(output), dtype],
                check=True,
                capture_output=True,
                text=True,
            )
            found = json.loads(done.stdout)
            hashing = found["seconds"]["hashing"]
            table.add(
                run + 1,
                f"{found['total_s'] - hashing:.1f}",
                f"{hashing:.1f}",
                f"{found['peak_resident_MiB']:.0f}",
            )
            for file in output.iterdir():
                file.unlink()
        result.write()


if __name__ == "__main__":
    main()
