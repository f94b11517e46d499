"""The command line: export · build (export.command) · calibrate, profile, verify (firp.calib) ·
tune · generate · bench · inspect · demo.

Results go to stdout, progress and messages to stderr. Exit status: 0 success, 1 a user's mistake or
a failed check (one line, no traceback), 2 wrong usage. Defaults are those of the dataclasses that
the options fill.
"""

import json
import os
import signal
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import click

from firp.calib.commands.calibrate import calibrate, run_calibration
from firp.calib.commands.profile import profile
from firp.calib.commands.verify import verify
from firp.calib.training.options import TrainOptions
from firp.export.commands.build import build, build_after_export
from firp.runtime.backends.nvidia_library import LIBRARIES
from firp.runtime.bundle.calibration import TEXTS
from firp.runtime.bundle.engine_record import engine_folders
from firp.runtime.bundle.format import CALIBRATION_NAME, load_bundle, to_json
from firp.runtime.bundle.graph_spec import DTYPES
from firp.runtime.console.terminal import (
    Repeating,
    cancel_on_interrupt,
    count_ties,
    messages,
    print_bench,
    print_bundle,
    print_choice,
    print_latency,
    progress_bar,
    summary,
    tuning_remark,
)
from firp.runtime.engine import BACKENDS, Chunk, Engine, Generation, collect
from firp.runtime.errors import CheckFailedError, FirpError
from firp.runtime.loop.text import Prompt, read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning.bench import bench
from firp.runtime.tuning.tune import tune as tune_engine

DEMO_MODEL = Path(__file__).parent / "tests" / "demo_model"
DEMO_BUNDLE = Path("demo-bundle")
PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="firp")
def cli():
    """Export a Hugging Face model for lossless multi-token decoding, and decode from the bundle."""


@cli.command(cls=Repeating)
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
    "--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True, help="Of weights and cache."
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
    model, output, predictors, calib_data, minutes, prediction_layer, dtype, verify, tune, engine, force
):
    """Turn the Hugging Face model directory MODEL into a bundle."""
    from firp.calib.calibrate.request import CalibrationRequest
    from firp.export.bundle.writer import ExportOptions, export_bundle, prepare
    from firp.export.tensorrt.build import BuildOptions, check_buildable
    from firp.export.verify.checks import quiet_transformers, verify_or_fail

    quiet_transformers()
    if calib_data and predictors:
        raise click.UsageError(
            "--predictors and --calib-data exclude each other: data trains new predictors."
        )
    if minutes is not None and not calib_data:
        raise click.UsageError("--minutes goes with --calib-data.")
    if engine:
        check_buildable(BuildOptions(engine), dtype)  # before anything is written
    with tempfile.TemporaryDirectory() if calib_data else nullcontext() as scratch:
        options = ExportOptions(model, output, predictors, prediction_layer, dtype, force=force)
        if calib_data:
            prepare(options, verify)  # before minutes of training
            training = TrainOptions(
                prediction_layer=prediction_layer,
                minutes=TrainOptions.minutes if minutes is None else minutes,
            )
            predictors = Path(scratch) / "predictors"
            run_calibration(CalibrationRequest(model, predictors, calib_data, options=training))
            options = ExportOptions(model, output, predictors, prediction_layer, dtype, force=force)
        with progress_bar() as bar:
            check = (lambda folder: verify_or_fail(folder, model, bar.stage)) if verify else None
            manifest = export_bundle(options, check, bar.update)
    size = sum(entry.size for entry in manifest.files.values())
    messages.print(
        f"wrote {output}: {manifest.dtype}, split at layer {manifest.prediction_layer}, {size / 2**20:.1f} MiB"
    )
    if manifest.verification:
        messages.print(
            f"verified: {len(manifest.verification['checks'])} checks, {count_ties(manifest.verification)}"
        )
    if not manifest.num_predictors:
        messages.print(
            "no predictors: this bundle decodes plainly; add --predictors or --calib-data for drafts"
        )
    elif tune and CALIBRATION_NAME in manifest.files and dtype != "bfloat16":
        with progress_bar() as bar:
            print_choice(tune_engine(Engine.load(output, check_hashes=False), progress=bar.update))
    if engine:
        build_after_export(output, engine)


cli.add_command(calibrate)
cli.add_command(build)
cli.add_command(profile)
cli.add_command(verify)


def _sampling_options(command):
    """The options that fill SamplingParams, its defaults shown."""
    defaults = SamplingParams()
    for name, kind, text in (
        ("seed", int, "The same seed gives the same tokens."),
        ("top_p", float, "Keep the smallest set of best candidates with this probability."),
        ("top_k", int, "Keep this many best candidates; 0: all."),
        ("temperature", float, "0: greedy."),
        ("max_new_tokens", int, "Tokens to decode at most."),
    ):
        flag = "--" + name.replace("_", "-")
        command = click.option(
            flag, type=kind, default=getattr(defaults, name), show_default=True, help=text
        )(command)
    return command


@cli.command(cls=Repeating)
@click.argument("bundle", type=PATH)
@click.option("--prompt", multiple=True, help="Texts to continue.")
@click.option(
    "--prompts", type=PATH, help="File with one JSON object a line: prompt or input_ids, optional id."
)
@_sampling_options
@click.option("--stop", multiple=True, help="End before any of these texts.")
@click.option("--plain", is_flag=True, help="One token a pass, no drafts.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a prompt.")
def generate(bundle, prompt, prompts, stop, plain, backend, as_json, **sampling):
    """Continue prompts from BUNDLE; drafted decoding gives the same tokens as plain decoding, in
    fewer passes.
    """
    if bool(prompt) == (prompts is not None):
        raise click.UsageError("give either --prompt or --prompts.")
    params = SamplingParams(**sampling, stop=tuple(stop))
    requests = (
        read_prompts(prompts) if prompts else [Prompt(str(i), text) for i, text in enumerate(prompt, 1)]
    )
    engine = Engine.load(bundle, backend)
    if not plain and (remark := tuning_remark(engine)):
        messages.print(remark)
    for request in requests:
        engine.encode(_content(request))  # all prompts are checked before the first is decoded
    with cancel_on_interrupt() as cancel:
        for request in requests:
            if len(requests) > 1 and not as_json:
                messages.print(f"[{request.id}]", style="bold")
            chunks = engine.stream(_content(request), params, plain=plain, cancel=cancel)
            result = collect(chunks) if as_json else collect(chunks, _show)
            if as_json:
                print(json.dumps(_generation_json(request.id, result)), flush=True)
            else:
                print()
                messages.print(summary(result), style="dim")
            if cancel.is_set():
                raise FirpError(
                    "interrupted", got=f"{result.stats.decoded_tokens} tokens of prompt {request.id}"
                )


def _show(chunk: Chunk) -> None:
    print(
        "".join(f"{token} " for token in chunk.token_ids) if chunk.text is None else chunk.text,
        end="",
        flush=True,
    )


def _content(request: Prompt) -> str | list[int]:
    return request.input_ids if request.text is None else request.text


def _generation_json(request_id: str, result: Generation) -> dict:
    return {
        "id": request_id,
        "prompt_tokens": result.prompt_tokens,
        "token_ids": result.token_ids,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "steps": result.stats.steps,
        "tokens_per_step": result.stats.tokens_per_step,
    }


@cli.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--text",
    type=click.Choice(TEXTS),
    default=TEXTS[0],
    show_default=True,
    help="What it is to be fastest at.",
)
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="cpu", show_default=True)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the choice, with the latency table, as one JSON object."
)
def tune(bundle, text, backend, as_json):
    """Measure latency against rows on this device, choose the fastest tree, and store the choice in
    BUNDLE.
    """
    with progress_bar() as bar:
        choice = tune_engine(Engine.load(bundle, backend), text, bar.update)
    if as_json:
        print(json.dumps(to_json(choice)))
    else:
        print_latency(choice.latency)
        print_choice(choice)


@cli.command("bench")
@click.argument("bundle", type=PATH)
@click.option("--prompts", type=PATH, required=True, help="Prompt file, as for generate.")
@_sampling_options
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_command(bundle, prompts, backend, as_json, **sampling):
    """Decode the prompts plainly and drafted, alternating in one process, and compare."""
    params, requests, engine = SamplingParams(**sampling), read_prompts(prompts), Engine.load(bundle, backend)
    if remark := tuning_remark(engine):
        messages.print(remark)
    result = bench(engine, [_content(request) for request in requests], params)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print_bench(result)
    if wrong := [each for each in result.differences if not each.near_tie]:
        raise CheckFailedError("drafted decoding differs from plain", got=f"{len(wrong)} prompts", expected=0)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and the tree as one JSON object.")
def inspect(bundle, as_json):
    """Show what BUNDLE holds; its files are checked, nothing is loaded."""
    loaded = load_bundle(bundle)
    if as_json:
        engines = [folder.name for folder in engine_folders(bundle)]
        print(
            json.dumps(
                {
                    **to_json(loaded.manifest),
                    "tree": to_json(loaded.tree) if loaded.tree else None,
                    "engines": engines,
                }
            )
        )
        return
    print_bundle(loaded)


@cli.command()
@click.option(
    "-o", "--output", type=PATH, default=DEMO_BUNDLE, show_default=True, help="Where to keep the bundle."
)
def demo(output):
    """Export the demo model, verify it, decode with and without drafts, and compare."""
    from firp.runtime.demo import run_demo

    if not (DEMO_MODEL / "config.json").is_file():
        raise FirpError(
            "the demo model is not installed", got=f"no '{DEMO_MODEL}'", fix="run firp demo from a checkout"
        )
    predictors, replace = DEMO_MODEL / "predictors", output == DEMO_BUNDLE
    click.get_current_context().invoke(
        export, model=DEMO_MODEL, output=output, predictors=predictors, force=replace
    )
    prompts = [prompt.text for prompt in read_prompts(DEMO_MODEL / "demo_prompts.jsonl")]
    run_demo(Engine.load(output), prompts, SamplingParams(max_new_tokens=48, stop=("\n\n",)))


def main() -> None:
    # pictures go to files; a notebook's backend would keep matplotlib from being imported
    os.environ["MPLBACKEND"] = "agg"
    # as an exception, so that unfinished folders are removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    try:
        cli.main(standalone_mode=False)
    except FirpError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "firp").startswith("firp"):
            raise
        click.echo(f"error: this command needs {error.name}. Fix: pip install 'firp[export]'", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk behind stdout, a path too long
        click.echo(
            f"error: {error.strerror or error} | got '{error.filename or 'standard output'!s:.200}'", err=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
