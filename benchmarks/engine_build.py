"""Time and memory of `firp build` on a 1.1-billion-parameter bundle, predicted against real.

    python benchmarks/engine_build.py [--dtype float16] [--folder DIR]

The bundle is that of `export_size.py` (TinyLlama's shape, random weights). The build is a process
of its own, whose peak resident memory engine.json records; it is compared with what
`firp.export.tensorrt.build.memory_needed` says before. Needs about 7 GB of disk.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from export_size import EXPORT
from random_model import SHAPES, make_checkpoint
from table import Result

from firp.export.tensorrt.build import graph_weight_bytes, memory_needed
from firp.runtime.backends.nvidia_library import LIBRARIES
from firp.runtime.bundle.format import load_bundle


@click.command()
@click.option("--backend", default="tensorrt-rtx", show_default=True, type=click.Choice(list(LIBRARIES)))
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(["bfloat16", "float16"]))
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to work; default: the system's temporary folder."
)
def main(backend, dtype, folder):
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = Path(scratch) / "model"
        bundle = Path(scratch) / "bundle"
        make_checkpoint(model, SHAPES["1b"], dtype)
        subprocess.run(
            [sys.executable, "-c", EXPORT, str(model), str(bundle), dtype], check=True, capture_output=True
        )
        shutil.rmtree(model)
        manifest = load_bundle(bundle, check_hashes=False).manifest
        weights = {name: graph_weight_bytes(bundle / f"{name}.onnx") for name in manifest.graphs}
        predicted = max(sum(memory_needed(manifest, name, size).values()) for name, size in weights.items())
        started = time.perf_counter()
        command = [sys.executable, "-m", "firp.cli", "build", str(bundle), "--backend", backend, "--json"]
        built = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result = Result("engine_build", f"firp build of a 1.1-billion-parameter bundle, {dtype}")
        table = result.table(
            f"{backend} {built['library_version']}, compute capability "
            f"{', '.join(built['compute_capabilities'])}",
            *("graph", "weights (MiB)", "plan (MiB)", "seconds", "launches"),
        )
        for name, size in weights.items():
            counts = ", ".join(f"{kind} {count}" for kind, count in built["launches"][name][0].items())
            plan = built["plans"][name]["size"]
            seconds = built["build_seconds"][name]
            table.add(name, f"{size / 2**20:.0f}", f"{plan / 2**20:.0f}", f"{seconds:.1f}", counts)
        real = built["peak_bytes"]
        result.note(f"{time.perf_counter() - started:.1f} s with start and hashing.")
        result.note(
            f"Peak resident memory: predicted {predicted / 2**30:.2f} GiB, real {real / 2**30:.2f} "
            f"({predicted / real - 1:+.1%})."
        )
        result.write()


if __name__ == "__main__":
    main()
