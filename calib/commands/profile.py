"""The `profile` command: options that fill a ProfileRequest, what it prints, and the folder it
writes.

DIR holds profile.json (a `BundleProfile`), the pictures, and polygraphy.sh; it appears whole or not
at all.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import click

from firp.calib.profiling.profile import (
    CACHED,
    LAYER_ROWS,
    PACKAGES,
    ROWS,
    BundleProfile,
    ProfileRequest,
    profile_bundle,
)
from firp.calib.targets.cost import Point
from firp.calib.targets.layer_times import KINDS
from firp.export.target_folder import disk_errors, target_folder
from firp.runtime.backends.registry import BACKENDS
from firp.runtime.bundle.format import load_bundle, to_json, write_json
from firp.runtime.commands.shown import describe, print_latency
from firp.runtime.console.options import PATH, Repeating, backend_option, json_option
from firp.runtime.console.progress import messages, progress_bar
from firp.runtime.console.tables import print_table
from firp.runtime.extras import require

PROFILE_NAME = "profile.json"
SCRIPT_NAME = "polygraphy.sh"


def _shown(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


@click.command(cls=Repeating)
@click.argument("bundle", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Write profile.json, pictures and polygraphy.sh here.",
)
@click.option("--rows", type=int, multiple=True, help=f"Rows of a pass.  [default: {_shown(ROWS)}]")
@click.option(
    "--cached",
    type=int,
    multiple=True,
    help=f"Cached tokens before it.  [default: {_shown(CACHED)}, cut to the context]",
)
@click.option("--batch", type=int, multiple=True, help="Sequences at once.  [default: 1]")
@click.option(
    "--layer-rows",
    type=int,
    multiple=True,
    help=f"Passes whose layers are timed.  [default: {_shown(LAYER_ROWS)}]",
)
@backend_option(BACKENDS, ProfileRequest.backend)
@json_option("Print profile.json.")
def profile(bundle, output, rows, cached, batch, layer_rows, backend, as_json):
    """Measure BUNDLE through polygraphy: latency of each graph over rows, cached tokens and batch,
    the parts of a step, layers by kind, and the share of this device's bandwidth and arithmetic. A
    share above 100 % means that weights stay in a cache.
    """
    require("profiling", PACKAGES)
    request = ProfileRequest(bundle, backend, rows, cached, batch or ProfileRequest.batches, layer_rows)
    # refused before minutes of measuring
    with target_folder(output, PROFILE_NAME) if output else nullcontext() as folder:
        with progress_bar() as bar:
            result = profile_bundle(request, bar.update)
        if as_json:
            print(json.dumps(to_json(result)))
        else:
            print_profile(result)
        if folder:
            with disk_errors(output):
                write_profile(folder, bundle, result)
    if output:
        messages.print(f"wrote {output}: {PROFILE_NAME}, pictures, polygraphy.sh")


def write_profile(folder: Path, bundle: Path, result: BundleProfile) -> None:
    """Into a folder that exists. Raises OSError when the disk refuses."""
    from firp.calib.profiling.pictures import draw_profile
    from firp.calib.profiling.polygraphy_script import polygraphy_script

    write_json(folder / PROFILE_NAME, to_json(result))
    points = [
        Point(each.rows, each.cached_tokens, each.batch) for each in result.passes if each.graph == "lower"
    ]
    largest = Point(*(max(sizes) for sizes in zip(*points, strict=True)))
    single = [point for point in points if point.batch == min(point.batch for point in points)]
    script = polygraphy_script(
        bundle, load_bundle(bundle, check_hashes=False).manifest, single[len(single) // 2], largest
    )
    (folder / SCRIPT_NAME).write_text(script, "utf-8")
    (folder / SCRIPT_NAME).chmod(0o755)
    for name, data in draw_profile(result).items():
        (folder / name).write_bytes(data)


def print_profile(result: BundleProfile) -> None:
    peaks = result.peaks
    arithmetic = f"{peaks.gflop_per_s:.0f} GFLOP/s" if peaks.gflop_per_s else "arithmetic not measured"
    title = (
        f"passes on {result.device}, {result.dtype}; "
        f"measured peaks {peaks.bandwidth_gb_per_s:.1f} GB/s, {arithmetic}"
    )
    batches = {each.batch for each in result.passes}
    for graph in dict.fromkeys(each.graph for each in result.passes):
        print_table(
            (
                "cached" if len(batches) == 1 else "batch x cached",
                "rows",
                "ms",
                "quartiles",
                "MB",
                "MFLOP",
                "bytes",
                "FLOPs",
            ),
            [
                (
                    str(each.cached_tokens) if len(batches) == 1 else f"{each.batch} x {each.cached_tokens}",
                    str(each.rows),
                    _ms(each.median_ms),
                    f"{_ms(each.low_ms)} {_ms(each.high_ms)}",
                    f"{each.cost.moved_bytes / 1e6:.1f}",
                    f"{each.cost.flops / 1e6:.0f}",
                    _percent(each.roofline.bandwidth_share),
                    _percent(each.roofline.arithmetic_share),
                )
                for each in result.passes
                if each.graph == graph
            ],
            f"{graph}: {title}",
        )
        title = "as above; bytes, FLOPs: share of the peak"
    _print_steps(result)
    _print_layers(result)
    print_latency(result.latency)


def _print_steps(result: BundleProfile) -> None:
    parts = [part.name for part in result.steps[0].parts]
    cells = [[each.part(part) for each in result.steps] for part in parts]
    trees = "".join(f"; drafted: {describe(each.tree)}" for each in result.steps if each.tree)
    print_table(
        ("ms of a step", *(each.decoding for each in result.steps)),
        [
            (
                part.removesuffix("_ms").replace("_", " "),
                *(f"{_ms(p.median_ms)} [{_ms(p.low_ms)} {_ms(p.high_ms)}]" for p in row),
            )
            for part, row in zip(parts, cells, strict=True)
        ],
        f"decoding after {result.steps[0].prompt_tokens} random tokens, median and quartiles{trees}",
    )


def _print_layers(result: BundleProfile) -> None:
    for graph in dict.fromkeys(each.graph for each in result.layers):
        of_graph = [each for each in result.layers if each.graph == graph]
        shares = [{part.kind: part for part in each.kinds} for each in of_graph]
        lines = [
            (
                kind,
                *(
                    f"{each[kind].share:.0%} ({each[kind].layers})" if kind in each else "-"
                    for each in shares
                ),
            )
            for kind in KINDS
            if any(kind in each for each in shares)
        ]
        lines.append(("ms, profiled", *(_ms(each.layers_ms) for each in of_graph)))
        lines.append(
            ("ms, unprofiled", *("-" if each.pass_ms is None else _ms(each.pass_ms) for each in of_graph))
        )
        print_table(
            ("share (layers)", *(f"{each.rows} {'row' if each.rows == 1 else 'rows'}" for each in of_graph)),
            lines,
            f"{graph} by kind, {of_graph[0].cached_tokens} cached tokens; "
            "profiling slows each layer, small ones the most",
        )


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
