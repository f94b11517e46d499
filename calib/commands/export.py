"""The `export` command: a model in, a verified and tuned bundle out; with text, predictors are
trained first.
"""

import dataclasses
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import click

from firp.calib.commands.calibrate import run_calibration
from firp.calib.training.options import TrainOptions
from firp.export.commands.build import build_after_export
from firp.runtime.backends.nvidia_library import LIBRARIES
from firp.runtime.bundle.dtypes import DTYPES, MODEL_DTYPES
from firp.runtime.bundle.format import CALIBRATION_NAME
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.precision import METHODS
from firp.runtime.commands.shown import count_ties, print_basis, print_choice, quantization_lines
from firp.runtime.console.interrupts import quit_on_interrupt
from firp.runtime.console.options import PATH, Repeating
from firp.runtime.console.progress import messages, progress_bar
from firp.runtime.engine import Engine
from firp.runtime.machine import peak_bytes
from firp.runtime.tuning.tune import tune as choose_tree

_MANY_EXPERTS = 2000  # of all layers: what a graph of that many takes to load, docs/large-models.md says


@click.command(cls=Repeating)
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The bundle to write.")
@click.option("--predictors", type=PATH, help="Predictor directory, from firp calibrate.")
@click.option("--calib-data", type=PATH, multiple=True, help="Train predictors on these text files first.")
@click.option(
    "--minutes", type=float, help=f"How long to train on --calib-data.  [default: {TrainOptions.minutes:g}]"
)
@click.option(
    "--prediction-layer",
    type=int,
    help="Where to split; default: that of the predictors, or 3/4 of the layers.",
)
@click.option(
    "--max-context",
    type=click.IntRange(min=1),
    help="Tokens of the longest text; default: what the model takes, with longrope what its short factors "
    "are for. Tables of positions grow with it.",
)
@click.option(
    "--dtype",
    type=click.Choice(MODEL_DTYPES),
    default=MODEL_DTYPES[0],
    show_default=True,
    help="Of weights and cache.",
)
@click.option(
    "--quantize",
    type=click.Choice(("none", *METHODS)),
    default="none",
    show_default=True,
    help="Weights as integers: int8 is fastest with drafts, int4 smallest; see docs/quantization.md.",
)
@click.option(
    "--quantize-text",
    type=PATH,
    help="A text like yours, that ranges of activations are found on; default: one of the package.",
)
@click.option(
    "--quality-limit",
    type=click.FloatRange(min=0),
    help="By how many percent the perplexity may rise.  [default: 5 with int8, 25 with int4]",
)
@click.option(
    "--verify/--no-verify", default=True, help="Check against the Hugging Face model; on by default."
)
@click.option(
    "--tune/--no-tune", default=True, help="Choose the tree that is fastest on this machine; on by default."
)
@click.option(
    "--engine",
    type=click.Choice(list(LIBRARIES)),
    help="Build engines with this library afterwards; see firp build.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def export(
    model,
    output,
    predictors,
    calib_data,
    minutes,
    prediction_layer,
    max_context,
    dtype,
    quantize,
    quantize_text,
    quality_limit,
    verify,
    tune,
    engine,
    force,
):
    """Turn MODEL, a Hugging Face directory or a GGUF file, into a bundle."""
    with quit_on_interrupt():
        from firp.calib.calibrate.request import CalibrationRequest
        from firp.export.bundle.writer import ExportOptions, export_bundle, prepare
        from firp.export.sources.open import open_checkpoint, takes_long_factors
        from firp.export.sources.transformers_library import quiet_transformers
        from firp.export.tensorrt.build import BuildOptions, check_buildable
        from firp.export.verify.checks import verify_or_fail

        quiet_transformers()
    if calib_data and predictors:
        raise click.UsageError(
            "--predictors and --calib-data exclude each other: data trains new predictors."
        )
    if minutes is not None and not calib_data:
        raise click.UsageError("--minutes goes with --calib-data.")
    if quantize == "none" and (quantize_text is not None or quality_limit is not None):
        raise click.UsageError("--quantize-text and --quality-limit go with --quantize.")
    if engine and quantize != "none":
        raise click.UsageError(f"--engine excludes --quantize {quantize}: {engine} does not run it.")
    if engine:
        check_buildable(BuildOptions(engine), dtype)  # before anything is written
    started = time.monotonic()
    with tempfile.TemporaryDirectory() if calib_data else nullcontext() as scratch:
        options = ExportOptions(
            model,
            output,
            predictors,
            prediction_layer,
            dtype,
            None if quantize == "none" else quantize,
            quantize_text,
            quality_limit,
            force=force,
            max_context=max_context,
        )
        _say_experts(prepare(options).checkpoint.config)  # before minutes of training
        if calib_data:
            training = TrainOptions(
                prediction_layer=prediction_layer,
                minutes=TrainOptions.minutes if minutes is None else minutes,
            )
            predictors = Path(scratch) / "predictors"
            run_calibration(CalibrationRequest(model, predictors, calib_data, options=training))
            options = dataclasses.replace(options, predictors=predictors)
        with progress_bar() as bar:
            check = (lambda folder: verify_or_fail(folder, model, bar.update)) if verify else None
            manifest = export_bundle(options, check, bar.update)
    _report(output, manifest, time.monotonic() - started)
    if max_context and takes_long_factors(checkpoint := open_checkpoint(model), max_context):
        messages.print(
            f"the rope factors of long texts for all texts: those of at most "
            f"{checkpoint.config.max_position_embeddings} tokens differ from Hugging Face, which takes others"
        )
    calibrated = manifest.num_predictors and CALIBRATION_NAME in manifest.files
    if tune and calibrated and DTYPES[dtype].has_cpu_kernels:
        _tune(Engine.load(output, check_hashes=False))
    if engine:
        build_after_export(output, engine)


def _tune(engine: Engine) -> None:
    """Choose a tree, where one of those that were calibrated can be drafted."""
    if engine.manifest.quantization and not engine.bundle.calibration.for_chains().candidates:
        path = engine.bundle.path
        messages.print(f"tune it with firp tune {path} --prompts FILE: all calibrated trees branch")
        return
    with progress_bar() as bar:
        choice = choose_tree(engine, progress=bar.update)
    print_basis(engine)
    print_choice(choice)


def _say_experts(config: ModelConfig) -> None:
    """Warn of graphs that ONNX Runtime takes long to load."""
    experts = sum(layer.sparse for layer in config.layers) * (config.experts.count if config.experts else 0)
    if experts > _MANY_EXPERTS:
        messages.print(
            f"{experts:,} experts, each a branch of its graph: ONNX Runtime loads 2,000 in 7 s of one core, "
            "and more take longer each; see docs/large-models.md"
        )


def _report(output: Path, manifest, seconds: float) -> None:
    """Say what was written."""
    size = sum(entry.size for entry in manifest.files.values()) / 2**20
    peak = peak_bytes()
    memory = f", {peak / 2**30:.1f} GiB of memory at the peak" if peak else ""
    messages.print(
        f"wrote {output}: {manifest.precision.weights}, split at layer {manifest.prediction_layer}, "
        f"{size:.1f} MiB; {seconds:.0f} s{memory}"
    )
    if manifest.quantization:
        messages.print("\n".join(quantization_lines(manifest.quantization)))
    if manifest.verification:
        checks = f"{len(manifest.verification['checks'])} checks, {count_ties(manifest.verification)}"
        messages.print(f"verified: {checks}")
    if manifest.quantization and not manifest.quantization.takes_drafts:
        messages.print("weights in blocks: this bundle decodes plainly")
    elif not manifest.num_predictors:
        messages.print(
            "no predictors: this bundle decodes plainly; add --predictors or --calib-data for drafts, "
            f"or see with firp tune {output} --prompts FILE whether prompt lookup pays"
        )
