"""Time and memory of exporting a synthetic 1.1-billion-parameter Llama checkpoint in its own dtype.

    python benchmarks/export_size.py [--dtype bfloat16] [--folder DIR]

The checkpoint (TinyLlama's shape, random weights, sharded) is made first, in a child process; the export runs in another, whose
time by stage and peak resident memory are printed. Needs about 5 GB of disk.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

MAKE = """
import sys, torch
from transformers import AutoModelForCausalLM, LlamaConfig
config = LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                     num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False)
torch.set_default_dtype(getattr(torch, sys.argv[2]))
model = AutoModelForCausalLM.from_config(config)
print(sum(p.numel() for p in model.parameters()))
model.save_pretrained(sys.argv[1], max_shard_size="1GB")
"""
EXPORT = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from firp.export.bundle_writer import ExportOptions, export_bundle
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
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float16", "float32"]))
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; default: the system's temporary folder.")
@click.option("--runs", default=3, show_default=True)
def main(dtype, folder, runs):
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = Path(scratch) / "model"
        made = subprocess.run([sys.executable, "-c", MAKE, str(model), dtype], check=True, capture_output=True, text=True)
        print(f"{int(made.stdout):,} parameters, {sum(f.stat().st_size for f in model.iterdir()) / 2**30:.2f} GiB, {dtype}")
        for run in range(runs):
            output = Path(scratch) / f"bundle-{run}"
            done = subprocess.run(
                [sys.executable, "-c", EXPORT, str(model), str(output), dtype], check=True, capture_output=True, text=True
            )
            result = json.loads(done.stdout)
            apart = result["total_s"] - result["seconds"]["hashing"]
            stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["seconds"].items())
            print(f"run {run}: {apart:.1f} s apart from hashing ({stages}), peak resident {result['peak_resident_MiB']:.0f} MiB")
            for file in output.iterdir():
                file.unlink()


if __name__ == "__main__":
    main()
