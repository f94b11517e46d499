"""The `build` command: options that fill BuildOptions, and what it prints. `firp export --engine`
ends here too.
"""

import json
from pathlib import Path
from typing import NamedTuple

import click

from firp.runtime.backends.nvidia_library import LIBRARIES
from firp.runtime.bundle.engine_record import ENGINES_FOLDER, EngineRecord, folder_name
from firp.runtime.bundle.format import MANIFEST_NAME, load_bundle, read_manifest
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.bundle.limits import Limits
from firp.runtime.console.interrupts import cancel_on_interrupt, quit_on_interrupt
from firp.runtime.console.options import PATH, Repeating, backend_option, json_option, options_from
from firp.runtime.console.progress import messages, progress_bar
from firp.runtime.errors import FirpError

_limit_options = options_from(
    Limits(),
    {
        "max_context": "Tokens of a sequence; no more than the model's own context.",
        "max_batch": "Sequences that decode together.",
        "max_rows": "Rows of a decoding pass, pseudo rows included; at least 1 + predictors.",
    },
)


@click.command(cls=Repeating)
@click.argument("bundle", type=PATH)
@backend_option(LIBRARIES, default=None, text="The library to build with.")
@_limit_options
@click.option(
    "--compute-capability",
    multiple=True,
    help="Devices to build for, such as 8.9.  [default: the GPU that is here; without one, all from 8.0 on]",
)
@click.option("--force", is_flag=True, help="Replace engines for the same library version and devices.")
@json_option("Print engine.json, with what each plan launches, as one JSON object.")
def build(bundle, backend, compute_capability, force, as_json, **limits):
    """Build TensorRT engines for BUNDLE; TensorRT-RTX needs no GPU for that."""
    built = run_build(bundle, backend, Limits(**limits), compute_capability or None, force)
    if as_json:
        summaries = {
            name: [to_json(summary) for summary in profiles] for name, profiles in built.summaries.items()
        }
        print(json.dumps({**to_json(built.record), "folder": str(built.folder), "launches": summaries}))


class Built(NamedTuple):
    """Engines that were built, and what their plans launch."""

    folder: Path
    record: EngineRecord
    # graph -> a PlanSummary for each profile; [] where the library's plans list no kernels
    summaries: dict[str, list]


def run_build(
    bundle: Path,
    backend: str,
    limits: Limits | None = None,
    capabilities: tuple[str, ...] | None = None,
    force: bool = False,
) -> Built:
    """Build with a progress bar, Ctrl-C cancels; then say what was built. Raises FirpError."""
    with quit_on_interrupt():
        from firp.export.tensorrt.build import BuildOptions, build_engines
        from firp.export.tensorrt.plan_text import read_plan, summarize

    options = BuildOptions(backend, limits or Limits(), capabilities, force)
    with progress_bar() as bar, cancel_on_interrupt() as cancel:
        record = build_engines(bundle, options, bar.update, cancel)
    folder = (
        bundle / ENGINES_FOLDER / folder_name(backend, record.library_version, record.compute_capabilities)
    )
    summaries = {
        name: [summarize(kernels) for kernels in read_plan(folder / f"{name}.plan")] for name in record.plans
    }
    built = Built(folder, record, summaries)
    _report(bundle, built, options, read_manifest(bundle / MANIFEST_NAME))
    return built


def build_after_export(bundle: Path, backend: str) -> None:
    """Build for a fresh bundle; a failed build leaves it as it is, and says so. Raises
    FirpError.
    """
    try:
        run_build(bundle, backend)
    except FirpError:
        again = f"firp build {bundle} --backend {backend}"
        messages.print(f"{bundle} is whole and can be used; it only has no engines: {again}")
        raise


def _report(bundle: Path, built: Built, options, manifest) -> None:
    """A line for each graph, and where the engines are."""
    record = built.record
    for name, entry in record.plans.items():
        line = f"{name}: {entry.size / 2**20:.1f} MiB in {record.build_seconds[name]:.1f} s"
        if built.summaries[name]:
            decode = built.summaries[name][0]
            line += f", {decode.launches} launches"
            if layers := len(manifest.layers(name)):
                line += (
                    f", {decode.launches_per_layer} a layer, fused attentions {decode.attentions}/{layers}"
                )
        messages.print(line)
    if record.limits != options.limits:
        messages.print(f"built for {record.limits.max_context} tokens of context: the model has no more")
    tree = load_bundle(bundle, check_hashes=False).tree
    if tree and (rows := tree.pass_rows(manifest.num_predictors)) > record.limits.max_rows:
        choose = f"firp tune {bundle} --backend {record.backend}"
        messages.print(
            f"the bundle's tree takes passes of {rows} rows, more than these engines hold: "
            f"{choose} finds one that fits"
        )
    devices = ", ".join(record.compute_capabilities)
    peak = f"peak memory {record.peak_bytes / 2**30:.2f} GiB"
    messages.print(f"wrote {built.folder} for compute capability {devices}; {peak}")
