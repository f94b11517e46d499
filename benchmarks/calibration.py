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

from firp.calib.calibrate import CalibrationRequest
from firp.calib.commands.calibrate import print_report, run_calibration
from firp.calib.replay.layer_sweep import layers_to_try
from firp.calib.text.documents import is_text
from firp.calib.training.options import TrainOptions

MODEL = Path(__file__).parent.parent / "tests" / "demo_model"
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


@click.group()
def main():
    pass


@main.command()
@click.option("--steps", default=300, show_default=True)
def baselines(steps):
    """Accuracy and tokens per step of FIRP, Medusa heads, early exit and prompt lookup, trained
    alike.
    """
    print_report(report_of(TrainOptions(minutes=None, steps=steps, baselines=True)))


@main.command()
@click.argument("minutes", type=float, nargs=-1)
def budgets(minutes):
    """Held-out tokens per step (rows 16, a draft at every step) and accuracy after so many minutes."""
    for budget in minutes or (1.0, 3.0, 10.0, 30.0):
        report = report_of(TrainOptions(minutes=budget))
        (firp,), at = report["methods"], report["rows"].index(16)
        per_step = ", ".join(f"{text} {values[at]:.2f}" for text, values in firp["corrected"].items())
        print(
            f"{budget:g} minutes, {report['steps']} steps: {per_step}; top-1 {firp['accuracy']['top1']}",
            flush=True,
        )


@main.command()
@click.option("--steps", default=100, show_default=True)
def layers(steps):
    """Each prediction layer, trained alike: accuracy, tokens per step (rows 16, a draft at every
    step), expected speedup here.
    """
    for layer in layers_to_try(8):
        report = report_of(TrainOptions(minutes=None, steps=steps, prediction_layer=layer))
        firp, at = report["methods"][0], report["rows"].index(16)
        per_step = ", ".join(f"{text} {values[at]:.2f}" for text, values in firp["corrected"].items())
        choice = report["choice"]
        print(
            f"layer {layer}: top-1 {firp['accuracy']['top1']}; {per_step}; speedup {choice['speedup']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
