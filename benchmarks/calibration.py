"""What calibration reaches on a model: FIRP against its baselines, by budget, prediction layer and
number of predictors.

    python benchmarks/calibration.py [OPTIONS] baselines|budgets|layers|predictors [OPTIONS] ...

Several of them in one command share the model's rows. Without options it is the demo model, and data
is the standard library of this Python without its tests, which that model knows as a style and mostly
as text; the last 5 % is held out. With --from-model and --held-out, the model's own continuations are
trained and measured on. With --runs the report of every training is kept, so that a command that was
stopped goes on. Figures are of the held-out part.
"""

import sysconfig
import tempfile
from pathlib import Path

import click
from table import Result
from training_runs import Runs

from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.replay.layer_sweep import layers_to_try
from firp.calib.text.documents import is_text
from firp.calib.training.options import PRECISIONS, TrainOptions
from firp.runtime.bundle.calibration import TEXTS, LatencyTable, read_latency
from firp.runtime.bundle.json_fields import from_json
from firp.runtime.console.options import PATH, options_from
from firp.runtime.prompts import read_prompts
from firp.runtime.trees.tree_config import TreeConfig

MODEL = Path(__file__).parent.parent / "tests" / "demo_model"
ROWS = (16, 32)  # of the trees that tables show
ROWS_SHOWN = " / ".join(map(str, ROWS)) + " rows, a draft at every step"
LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3"}
SOURCES = 2  # of the trees whose steps are timed: more cost more rows than they give drafts


def standard_library() -> tuple[Path, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not LEFT_OUT & set(file.relative_to(root).parts))
    return tuple(file for file in files if file.stat().st_size and is_text(file))


def texts(report: dict) -> list[str]:
    """The kinds of text that were measured on: own text has no third kind."""
    return [text for text in TEXTS if text in report["static"]]


def rates(report: dict, values: dict[str, list[float]]) -> list[str]:
    """Cells for each kind of text: tokens per step at ROWS."""
    at = [report["rows"].index(rows) for rows in ROWS]
    return [" / ".join(f"{values[text][i]:.2f}" for i in at) for text in texts(report)]


def shares(accuracy: dict, top: str) -> str:
    """Correct guesses by offset, in percent."""
    return " ".join(f"{100 * share:.1f}" for share in accuracy[top])


def compare(result: Result, first: str, reports: dict[object, dict]) -> None:
    """Write a table of trainings that differ in one thing. reports: by what they differ in."""
    known = list(reports.values())
    timed = all(report["choice"] for report in known)
    columns = (first, "steps", "minutes", "top-1 (%)", *texts(known[0]))
    times = ("expected speedup, full trees, greedy", "of rows") if timed else ()
    table = result.table(f"Tokens per step at {ROWS_SHOWN}", *columns, *times)
    for label, report in reports.items():
        firp = report["methods"][0]
        trained = (report["steps"], f"{report['minutes']:.1f}")
        cells = (*trained, shares(firp["accuracy"], "top1"), *rates(report, firp["corrected"]))
        table.add(label, *cells, *(speeds(report) if timed else ()))
    if timed:
        device = known[0]["choice"]["latency"]["device"]
        result.note(
            f"Speedup: with the latencies of {device}, as if all layers cost the same, of a full tree with "
            f"{SOURCES} draft sources, if no step goes without a draft. Trees that end where drafts are "
            f"improbable, which the tuner knows too, are faster."
        )
    finish(result, known[0])


def speeds(report: dict) -> tuple[str, int]:
    """Cells for what the fastest full tree is expected to give greedy decoding, and for its rows."""
    latency = from_json(LatencyTable, report["choice"]["latency"], "latency")
    tokens = report["methods"][0]["corrected"]["greedy"]
    k = report["num_predictors"]
    speedup, rows = max(
        (rate * latency.plain_ms() / latency.step_ms(TreeConfig("dynamic", rows, SOURCES), k), rows)
        for rows, rate in zip(report["rows"], tokens, strict=True)
    )
    return f"{speedup:.2f}", rows


def finish(result: Result, report: dict) -> None:
    """Write the tables, with what their figures are of. report: any of them."""
    guesses = report["methods"][0]["accuracy"]["guesses"]
    result.note(
        f"{report['tokens']:,} tokens of data, the held-out ones included; "
        f"top-1 of {guesses:,} guesses at each offset."
    )
    result.write()


class Named:
    """The runs, and how their results are called."""

    def __init__(self, runs: Runs, name: str | None):
        self.runs = runs
        self.suffix = f"_{name.lower()}" if name else ""
        self.title = f"{name}: " if name else ""

    def result(self, name: str, title: str) -> Result:
        return Result(f"calibration_{name}{self.suffix}", f"{self.title}{title}")


@click.group(chain=True)
@click.option("--model", type=PATH, default=MODEL, help="A Hugging Face directory, or a GGUF file.")
@click.option("--name", help="Of the model, for titles and the names of files in results/.")
@click.option("--data", type=PATH, multiple=True, help="Text to train and measure on.")
@click.option("--from-model", type=PATH, help="Prompts; train on what the model writes after them.")
@click.option("--held-out", type=PATH, help="Prompts; measure on what the model writes after them.")
@click.option("--prediction-layer", type=int, help="Of all but `layers`.  [default: 3/4 of the layers]")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0], help="Of the frozen model."
)
@click.option("--latency", type=PATH, help="From the target: the output of firp tune --json.")
@click.option("--runs", "folder", type=PATH, help="Keep reports here, and take up those that are there.")
@options_from(
    TrainOptions(),
    {
        "window": "Tokens of one training sequence.",
        "batch": "Sequences of one step.",
        "anchors": "Draft sources sampled from each sequence.",
        "seed": "Of everything that is drawn at random.",
        "own_tokens": "That the model writes for --from-model and --held-out.",
        "correction_rank": "Of the path correction's tables.",
    },
)
@click.pass_context
def main(context, model, name, data, from_model, held_out, latency, folder, **options):
    if bool(from_model) != bool(held_out):
        raise click.UsageError("--from-model and --held-out need each other.")
    if folder is None:
        folder = Path(context.with_resource(tempfile.TemporaryDirectory()))
    folder.mkdir(parents=True, exist_ok=True)
    training, measured = (
        tuple(prompt.content for prompt in read_prompts(file)) if file else ()
        for file in (from_model, held_out)
    )
    request = CalibrationRequest(
        model=model,
        output=folder / "predictors",
        data=data or (() if training else standard_library()),
        prompts=training,
        options=TrainOptions(**options),
        latency=read_latency(latency) if latency else None,
    )
    context.obj = Named(Runs(request, measured, folder), name)


@main.command()
@click.option("--steps", default=300, show_default=True)
@click.pass_obj
def baselines(named, steps):
    """Accuracy and tokens per step of FIRP, Medusa heads, early exit and prompt lookup, trained
    alike.
    """
    layer = named.runs.layer
    report = named.runs.report(f"layer_{layer}_steps_{steps}", minutes=None, steps=steps, baselines=True)
    result = named.result("baselines", "FIRP against its baselines, trained alike")
    accuracy = result.table(
        "Correct guesses by offset (%), against the model's own greedy tokens", "method", "top-1", "top-5"
    )
    for method in report["methods"]:
        if method["accuracy"]:
            accuracy.add(
                method["method"], shares(method["accuracy"], "top1"), shares(method["accuracy"], "top5")
            )
    steps_table = result.table(f"Tokens per step at {ROWS_SHOWN}", "method", "guesses", *texts(report))
    steps_table.add("firp", "static tree", *rates(report, report["static"]))
    for method in report["methods"]:
        for kind in ("corrected", "independent"):
            if method[kind]:
                steps_table.add(method["method"], kind, *rates(report, method[kind]))
    result.note(f"{report['steps']} steps; FIRP and early exit at layer {layer}.")
    finish(result, report)


@main.command()
@click.option("--minutes", type=float, multiple=True, help="[default: 1, 3, 10, 30]")
@click.option("--steps", type=int, multiple=True, help="Budgets in steps instead.")
@click.option("--predictors", type=PATH, multiple=True, help="Predictors that were trained before.")
@click.pass_obj
def budgets(named, minutes, steps, predictors):
    """Tokens per step and accuracy after so many minutes or steps; each is a training of its own,
    whose learning rate falls to 0 at its end.
    """
    runs = named.runs
    reports = {}
    for budget in minutes or (() if steps or predictors else (1.0, 3.0, 10.0, 30.0)):
        name = f"layer_{runs.layer}_minutes_{budget:g}"
        reports[f"{budget:g} minutes"] = runs.report(name, minutes=budget)
    for budget in steps:
        name = f"layer_{runs.layer}_steps_{budget}"
        reports[f"{budget} steps"] = runs.report(name, minutes=None, steps=budget)
    for path in predictors:
        report = runs.stored_report(f"stored_{path.name}", path)
        reports[f"{path.name}, {report['minutes']:g} minutes"] = report
    compare(named.result("budgets", "Quality by length of training"), "budget", reports)


@main.command()
@click.option("--steps", default=100, show_default=True)
@click.option("--layer", type=int, multiple=True, help="[default: those of --prediction-layer auto]")
@click.pass_obj
def layers(named, steps, layer):
    """Each prediction layer, trained alike."""
    runs = named.runs
    reports = {
        at: runs.report(f"layer_{at}_steps_{steps}", minutes=None, steps=steps, prediction_layer=at)
        for at in layer or layers_to_try(runs.layers)
    }
    title = f"Prediction layers of {runs.layers}, {steps} steps of training"
    compare(named.result("layers", title), "layer", reports)


@main.command()
@click.option("--steps", default=100, show_default=True)
@click.option("-k", "--num-predictors", type=int, multiple=True, help="[default: 3, 4, 5]")
@click.pass_obj
def predictors(named, steps, num_predictors):
    """Each number of predictors, trained alike."""
    runs = named.runs
    reports = {}
    for k in num_predictors or (3, 4, 5):
        name = f"layer_{runs.layer}_steps_{steps}" + (f"_k_{k}" if k != TrainOptions.num_predictors else "")
        reports[k] = runs.report(name, minutes=None, steps=steps, num_predictors=k)
    title = f"Numbers of predictors at layer {runs.layer}, {steps} steps of training"
    compare(named.result("predictors", title), "K", reports)


if __name__ == "__main__":
    main()
