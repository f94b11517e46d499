"""What calibration reaches on the demo model: FIRP against its baselines, and quality by minutes of
training.

    python benchmarks/calibration.py baselines [--steps 300]
    python benchmarks/calibration.py budgets [1 3 10 30]
    python benchmarks/calibration.py layers [--steps 100]

Data: the standard library of this Python without its tests, which the demo model knows as a style
and mostly as text. The last 5 % is held out from the training of heads; figures are of that part.
"""

import json
import sysconfig
import tempfile
from pathlib import Path

import click
from table import Result

from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.commands.calibrate import run_calibration
from firp.calib.replay.layer_sweep import layers_to_try
from firp.calib.text.documents import is_text
from firp.calib.training.options import TrainOptions
from firp.runtime.bundle.calibration import TEXTS

MODEL = Path(__file__).parent.parent / "tests" / "demo_model"
ROWS = (16, 32)  # of the trees that tables show
ROWS_SHOWN = " / ".join(map(str, ROWS)) + " rows, a draft at every step"
LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3"}


def standard_library() -> tuple[Path, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not LEFT_OUT & set(file.relative_to(root).parts))
    return tuple(file for file in files if file.stat().st_size and is_text(file))


def report_of(options: TrainOptions) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "predictors"
        run_calibration(CalibrationRequest(MODEL, output, standard_library(), options=options))
        return json.loads((output / "report.json").read_text())


def by_text(report: dict, values: dict[str, list[float]]) -> list[str]:
    """Cells for greedy, sampled and held-out text: tokens per step at ROWS."""
    at = [report["rows"].index(rows) for rows in ROWS]
    return [" / ".join(f"{values[text][i]:.2f}" for i in at) for text in TEXTS]


def shares(accuracy: dict, top: str) -> str:
    """Correct guesses by offset, in percent."""
    return " ".join(f"{100 * share:.1f}" for share in accuracy[top])


@click.group()
def main():
    pass


@main.command()
@click.option("--steps", default=300, show_default=True)
def baselines(steps):
    """Accuracy and tokens per step of FIRP, Medusa heads, early exit and prompt lookup, trained
    alike.
    """
    report = report_of(TrainOptions(minutes=None, steps=steps, baselines=True))
    result = Result("calibration_baselines", "FIRP against its baselines, trained alike")
    accuracy = result.table(
        "Correct guesses by offset (%), against the model's own greedy tokens", "method", "top-1", "top-5"
    )
    for method in report["methods"]:
        if method["accuracy"]:
            accuracy.add(
                method["method"], shares(method["accuracy"], "top1"), shares(method["accuracy"], "top5")
            )
    rates = result.table(f"Tokens per step at {ROWS_SHOWN}", "method", "guesses", *TEXTS)
    rates.add("firp", "static tree", *by_text(report, report["static"]))
    for method in report["methods"]:
        for kind in ("corrected", "independent"):
            if method[kind]:
                rates.add(method["method"], kind, *by_text(report, method[kind]))
    result.note(f"{report['steps']} steps; {report['tokens']:,} tokens of data, the held-out ones included.")
    result.write()


@main.command()
@click.argument("minutes", type=float, nargs=-1)
def budgets(minutes):
    """Held-out tokens per step (a draft at every step) and accuracy after so many minutes."""
    result = Result("calibration_budgets", "Quality by minutes of training")
    table = result.table(f"Tokens per step at {ROWS_SHOWN}", "minutes", "steps", *TEXTS, "top-1 (%)")
    for budget in minutes or (1.0, 3.0, 10.0, 30.0):
        report = report_of(TrainOptions(minutes=budget))
        firp = report["methods"][0]
        table.add(
            f"{budget:g}",
            report["steps"],
            *by_text(report, firp["corrected"]),
            shares(firp["accuracy"], "top1"),
        )
    result.write()


@main.command()
@click.option("--steps", default=100, show_default=True)
def layers(steps):
    """Each prediction layer, trained alike: accuracy, tokens per step (a draft at every step),
    expected speedup here.
    """
    result = Result("calibration_layers", f"Prediction layers of 8, {steps} steps of training")
    table = result.table(f"Tokens per step at {ROWS_SHOWN}", "layer", "top-1 (%)", *TEXTS, "expected speedup")
    for layer in layers_to_try(8):
        report = report_of(TrainOptions(minutes=None, steps=steps, prediction_layer=layer))
        firp = report["methods"][0]
        table.add(
            layer,
            shares(firp["accuracy"], "top1"),
            *by_text(report, firp["corrected"]),
            f"{report['choice']['speedup']:.2f}",
        )
    result.write()


if __name__ == "__main__":
    main()
