"""The `calibrate` command: options that fill a CalibrationRequest, and what it prints."""

import json
import threading

import click

from firp.calib.training.options import AUTO, PRECISIONS, TrainOptions
from firp.runtime.bundle.calibration import read_latency
from firp.runtime.console.interrupts import cancel_on_interrupt, quit_on_interrupt
from firp.runtime.console.options import PATH, Repeating, json_option, options_from
from firp.runtime.console.progress import messages, progress_bar
from firp.runtime.console.tables import print_table
from firp.runtime.errors import FirpError
from firp.runtime.prompts import read_prompts

_training_options = options_from(
    TrainOptions(),
    {
        "num_predictors": "K: tokens guessed ahead.",
        "seed": "The same seed and --steps give the same predictors.",
        "window": "Tokens of one training sequence.",
        "batch": "Sequences of one pass.",
        "accumulate": "Passes of one step.",
        "anchors": "Draft sources sampled from each sequence.",
        "own_tokens": "That the model writes for --from-model.",
        "learning_rate": "Peak, of the predictors.",
        "correction_rank": "Of the path correction's tables.",
    },
)


@click.command(cls=Repeating)
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The predictor directory to write.")
@click.option(
    "--data",
    type=PATH,
    multiple=True,
    help="Text files, .jsonl (text or messages), directories.",
)
@click.option(
    "--from-model",
    type=PATH,
    help="Prompt file; train on what the model writes after them too.",
)
@click.option(
    "--prediction-layer",
    help=f"Layer whose input the predictors read, or '{AUTO}'.  [default: 3/4 of the layers]",
)
@click.option("--minutes", type=float, help=f"How long to train.  [default: {TrainOptions.minutes:g}]")
@click.option("--steps", type=int, help="Train for this many steps instead.")
@_training_options
@click.option("--device", default=TrainOptions.device, show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="Of the frozen model.",
)
@click.option(
    "--baselines",
    is_flag=True,
    help="Train Medusa heads and early exit as well, for as many steps, and compare.",
)
@click.option("--latency", type=PATH, help="From the target: the output of firp tune --json.")
@click.option("--resume", is_flag=True, help="Go on with the calibration that was interrupted.")
@json_option("Print report.json.")
def calibrate(model, output, data, from_model, latency, resume, as_json, **options):
    """Train predictors and path correction for MODEL, a Hugging Face directory or a GGUF file,
    calibrate draft trees, and report what they are worth.
    """
    if not data and not from_model:
        raise click.UsageError("give --data, --from-model, or both.")
    with quit_on_interrupt():
        from firp.calib.calibrate.request import CalibrationRequest

    request = CalibrationRequest(
        model=model,
        output=output,
        data=data,
        prompts=tuple(prompt.content for prompt in read_prompts(from_model)) if from_model else (),
        options=_options(**options),
        latency=read_latency(latency) if latency else None,
        resume=resume,
    )
    with cancel_on_interrupt() as cancel:
        run_calibration(request, cancel)
    report = json.loads((output / "report.json").read_text("utf-8"))
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
        split = f"split at layer {report['prediction_layer']}"
        messages.print(f"wrote {output} ({split}); pictures in {output / 'report.html'}")


def run_calibration(request, cancel: threading.Event | None = None) -> None:
    """Calibrate with a progress bar. Raises FirpError."""
    with quit_on_interrupt():
        from firp.calib.calibrate.run import calibrate
        from firp.export.sources.transformers_library import quiet_transformers

        quiet_transformers()
    with progress_bar() as bar:
        calibrate(request, lambda event: bar.update(event.stage, event.done, event.total), cancel)


def _options(
    prediction_layer: str | None, minutes: float | None, steps: int | None, **numbers
) -> TrainOptions:
    if minutes is not None and steps is not None:
        raise click.UsageError("--minutes and --steps exclude each other.")
    layer = prediction_layer
    if layer not in (None, AUTO):
        try:
            layer = int(layer)
        except ValueError as error:
            raise FirpError(
                "bad prediction layer", got=repr(layer)[:40], expected=f"a number, or '{AUTO}'"
            ) from error
    if minutes is None and steps is None:
        minutes = TrainOptions.minutes
    return TrainOptions(prediction_layer=layer, minutes=minutes, steps=steps, **numbers)


def print_report(report: dict) -> None:
    """The numbers of report.json that decide."""
    trained = [method for method in report["methods"] if method["accuracy"]]
    shares = ("top1", "top3", "top5", "top10")
    guesses = trained[0]["accuracy"]["guesses"]
    print_table(
        ("accuracy by offset", "top-1", "top-3", "top-5", "top-10"),
        [
            (
                m["method"],
                *(" ".join(f"{share:.3f}".lstrip("0") for share in m["accuracy"][top]) for top in shares),
            )
            for m in trained
        ],
        f"held-out text, against the model's own greedy tokens, {guesses} guesses each",
    )
    rows = report["rows"]
    for text, static in report["static"].items():
        lines = [("firp, static tree", *(f"{value:.2f}" for value in static))]
        for method in report["methods"]:
            for kind in ("corrected", "independent"):
                if text in method[kind]:
                    label = f"{method['method']}, {kind}" if method["corrected"] else method["method"]
                    lines.append((label, *(f"{value:.2f}" for value in method[kind][text])))
        print_table((f"tokens/step, {text}", *(f"{count} rows" for count in rows)), lines)
    for layer in report["layers"]:
        rate = f"{layer['tokens_per_step']:.2f} tokens/step, expected speedup {layer['speedup']:.2f}"
        messages.print(f"layer {layer['prediction_layer']}: {rate}")
    if choice := report["choice"]:
        verdict = "" if choice["drafts"] else ": plain decoding is faster"
        messages.print(f"on {choice['latency']['device']}: expected speedup {choice['speedup']:.2f}{verdict}")
