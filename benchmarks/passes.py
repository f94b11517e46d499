"""Where the time of a pass and of a step goes on this device, as `firp profile` measures it.

python benchmarks/passes.py BUNDLE [--backend cpu]
"""

import json
import subprocess
import sys
from pathlib import Path

import click
from table import Result

ROWS = (1, 4, 16, 64)
CACHED = (128, 256, 1984)


def spread(part: dict) -> str:
    """Median and quartiles in milliseconds."""
    return f"{part['median_ms']:.3f} [{part['low_ms']:.3f} {part['high_ms']:.3f}]"


def shares(kinds: list[dict]) -> str:
    """Kinds of layers with their share of a graph's time, the largest first."""
    ordered = sorted(kinds, key=lambda kind: -kind["share"])
    return ", ".join(f"{kind['kind']} {kind['share']:.0%}" for kind in ordered)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", default="cpu", show_default=True)
def main(bundle, backend):
    command = [sys.executable, "-m", "firp.cli", "profile", bundle, "--backend", backend, "--json"]
    command += ["--rows", *map(str, ROWS), "--cached", *map(str, CACHED)]
    profile = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    write(profile)


def write(profile: dict) -> Path:
    """Write results/passes.md from profile.json."""
    result = Result("passes", f"Passes and steps on {profile['device']}, {profile['dtype']}")
    passes = result.table(
        "A pass by polygraphy", "graph", "cached", "rows", "ms [quartiles]", "of the roofline"
    )
    for measured in profile["passes"]:
        roofline = measured["roofline"]
        share = max(roofline["bandwidth_share"], roofline["arithmetic_share"] or 0)
        passes.add(
            measured["graph"], measured["cached_tokens"], measured["rows"], spread(measured), f"{share:.0%}"
        )
    steps = result.table("A step, median ms", "part", *(split["decoding"] for split in profile["steps"]))
    for parts in zip(*(split["parts"] for split in profile["steps"]), strict=True):
        steps.add(parts[0]["name"].removesuffix("_ms"), *map(spread, parts))
    if profile["layers"]:
        layers = result.table("Layers by their own clock", "graph", "rows", "cached", "ms", "shares")
        for layer in profile["layers"]:
            layers.add(
                layer["graph"],
                layer["rows"],
                layer["cached_tokens"],
                f"{layer['layers_ms']:.2f}",
                shares(layer["kinds"]),
            )
    peaks = profile["peaks"]
    arithmetic = f", {peaks['gflop_per_s']:.0f} GFLOP/s" if peaks["gflop_per_s"] else ""
    result.note(f"Peaks: {peaks['bandwidth_gb_per_s']:.1f} GB/s{arithmetic} ({peaks['measured_by']}).")
    return result.write()


if __name__ == "__main__":
    main()
