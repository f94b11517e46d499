"""The `verify` command: what it checks, and what it prints. The exit status is 1 when a check
fails.

In: a bundle, and the model it came from. Out: the `Report` of `firp.export.verify`; with --layers the
comparisons of graphs too.
"""

import json
from pathlib import Path

import click

from firp.calib.targets.open import open_target
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from firp.runtime.backends.registry import BACKENDS
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.console.interrupts import cancel_on_interrupt, quit_on_interrupt
from firp.runtime.console.options import PATH, backend_option, json_option
from firp.runtime.console.progress import messages, progress_bar
from firp.runtime.console.tables import print_table
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError
from firp.runtime.extras import require

PACKAGES = ("polygraphy", "onnx")  # of --layers
_LAYERS_HELP = """Compare every graph with ONNX Runtime in float32 too, through polygraphy: as it runs, and
once more with the outputs of its layers, to name the first tensor beyond its limit. TensorRT engines with
these outputs are built for it and not kept, which takes as long as firp build."""


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--model",
    type=PATH,
    help="The directory or GGUF file it came from: compares with Hugging Face too.",
)
@click.option("--layers", is_flag=True, help=_LAYERS_HELP)
@backend_option(BACKENDS)
@json_option("Print one JSON object.")
def verify(bundle, model, layers, backend, as_json):
    """Check BUNDLE: file hashes, drafted against plain decoding, engines against ONNX Runtime, both
    against Hugging Face.
    """
    with quit_on_interrupt():
        from firp.export.sources.transformers_library import quiet_transformers
        from firp.export.verify.checks import verify
        from firp.export.verify.report import Report

        if model:
            quiet_transformers()
    if layers:
        require("verify --layers", PACKAGES)
    on_cpu = backend == OnnxRuntimeBackend.name  # where some types need float32 graphs
    engine = None if on_cpu else Engine.load(bundle, backend)
    comparisons = _compare(bundle, backend) if layers else []
    with progress_bar() as bar:
        report = verify(bundle, model, bar.update, engine=engine)
    report = Report([*report.checks, *(each.check() for each in comparisons)])
    if as_json:
        print(
            json.dumps(
                report.to_json() | ({"layers": [to_json(each) for each in comparisons]} if layers else {})
            )
        )
    else:
        _print(report, comparisons)
    if not report.passed:
        failed = [check.name for check in report.checks if not check.passed]
        raise CheckFailedError(
            "verification failed", got=", ".join(failed), expected="every check within its limit"
        )


def _compare(bundle: Path, backend: str) -> list:
    from firp.calib.comparison.layers import compare_graphs

    loaded = load_bundle(bundle, check_hashes=False)  # `verify` has checked them
    target = open_target(loaded, backend)
    with progress_bar() as bar, cancel_on_interrupt() as cancel:
        return list(compare_graphs(target, loaded, bar.update, cancel))


def _print(report, comparisons) -> None:
    from firp.calib.comparison.layers import WITH_LAYERS

    names = {each.check().name for each in comparisons}
    rows = [
        (c.name, f"{c.value:.3g}", f"{c.limit:.3g}", "yes" if c.passed else "NO")
        for c in report.checks
        if c.name not in names
    ]
    print_table(("check", "value", "limit", "passed"), rows)
    if comparisons:
        print_table(
            ("graph", "tensors", "worst", "limit", "first beyond", "layer"),
            [
                (
                    each.graph + (", layers" if each.form == WITH_LAYERS else ""),
                    str(each.tensors),
                    f"{each.worst:.3g}",
                    f"{each.limit:.3g}",
                    each.first_beyond or "-",
                    "-" if each.layer is None else str(each.layer),
                )
                for each in comparisons
            ],
            "worst difference from ONNX Runtime in float32, without optimizations",
        )
    for tie in report.near_ties:
        messages.print(
            f"near tie: {tie.tree}, prompt {tie.difference.prompt}, token {tie.difference.position}, "
            f"margin {tie.difference.margin:.2g}"
        )
