"""Random configurations of every family, adversarial ones among them: exported, held to Hugging Face's
module in float64, to `generate`, and drafted decoding to plain.

    python benchmarks/families.py [--form int8] [--configs 3] [--seed 0] [--family NAME]... [--rows FILE]

A row a family: how many configurations passed, the worst distance from float64 in units of what
transformers' own float32 is away from it, and why configurations were refused, if any were. Rows are
kept in FILE, from which the next run goes on; several runs may share it.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
from table import Result

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.verify.checks import verify
from firp.export.verify.rounding import YARDSTICKS
from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.bundle.precision import METHODS
from firp.runtime.errors import FirpError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.family_models import random_changes, save_family
from support.small_models import make_predictors

ANY_LOSS = 1e9  # a random model has no quality to lose
STAGES = ("prefill", "decode", "tree")


class Found(NamedTuple):
    """What one configuration came to."""

    worst: float  # distance from float64, in units of the yardstick
    failed: str  # the first check that failed; "" where none did
    refused: str  # the error; "" where there was none


def one(folder: Path, model_type: str, changes: dict[str, Any], seed: int, form: str) -> Found:
    """Export and verify one model, in a float type or as integers."""
    model = save_family(folder / "model", model_type, seed, **changes)
    stored = {"quantize": form, "quality_limit": ANY_LOSS} if form in METHODS else {"dtype": form}
    try:
        predictors = None if form == "int4" else make_predictors(folder / "predictors", model, 2, 2)
        export_bundle(ExportOptions(model, folder / "bundle", predictors, prediction_layer=2, **stored))
    except FirpError as error:
        return Found(0.0, "", str(error))
    checks = verify(folder / "bundle", model, check_hashes=False).checks
    failed = next((check.name for check in checks if not check.passed), "")
    return Found(max(check.value for check in checks if check.name.startswith(STAGES)), failed, "")


@click.command()
@click.option("--form", type=click.Choice((*MODEL_DTYPES, *METHODS)), default="float32", show_default=True)
@click.option("--configs", default=3, show_default=True, help="Of each family.")
@click.option("--seed", default=0, show_default=True)
@click.option("--family", "names", multiple=True, help="One of the table; all where none is named.")
@click.option("--rows", type=click.Path(path_type=Path), help="Where rows are kept, a line each.")
def main(form, configs, seed, names, rows):
    name = "families" if form == MODEL_DTYPES[0] else f"families_{form}"
    result = Result(name, f"Random models of families in {form}")
    table = result.table(
        f"Worst distance from float64, of at most {YARDSTICKS:g}; {configs} random configurations a family",
        "model_type",
        "passed",
        "worst",
        "failed or refused",
    )
    lines = rows.read_text().splitlines() if rows and rows.exists() else []
    known = {row[0]: row for row in map(json.loads, lines)}
    for model_type in names or sorted(FAMILIES):
        if model_type in known:
            table.add(*known[model_type])
            continue
        rng = random.Random(f"{model_type} {seed}")
        found = []
        for index in range(configs):
            changes = random_changes(rng, model_type, hard=index > 0)
            with tempfile.TemporaryDirectory() as folder:
                found.append(one(Path(folder), model_type, changes, seed + index, form))
            if found[-1].failed or found[-1].refused:
                print(model_type, changes, found[-1], file=sys.stderr, flush=True)
        passed = sum(not (each.failed or each.refused) for each in found)
        why = "; ".join(sorted({each.failed or each.refused for each in found} - {""}))
        worst = max(each.worst for each in found)
        row = (model_type, f"{passed} of {configs}", f"{worst:.2f}", why)
        table.add(*row)
        if rows:
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    result.write()


if __name__ == "__main__":
    main()
