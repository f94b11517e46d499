"""Chooses the tree for this device and stores the choice in the bundle.

In: a bundle with calibrated trees. Out: its manifest with one `Choice` more, replaced in one move;
nothing else changes.
"""

from dataclasses import replace

from firp.runtime.bundle.calibration import TEXTS, Calibration, Choice, choose
from firp.runtime.bundle.format import MANIFEST_NAME, read_manifest, write_manifest
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.progress import Progress, silent
from firp.runtime.tuning.latency import measure_latency


def tune(engine: Engine, text: str = TEXTS[0], progress: Progress = silent) -> Choice:
    """Measure latency against rows here and pick rows, draft sources, depth and order for the
    highest expected tokens per second.

    Raises FirpError when the bundle has no trees to choose from, or cannot be written.
    """
    calibration = engine.bundle.calibration
    if calibration is None:
        raise FirpError(
            "the bundle has no calibrated trees",
            got=f"'{engine.bundle.path}'",
            fix="export it with predictors from firp calibrate",
        )
    k, limits = engine.manifest.num_predictors, engine.limits
    held = [
        each for each in calibration.candidates if not limits or each.tree.pass_rows(k) <= limits.max_rows
    ]
    choice = choose(Calibration(tuple(held)), measure_latency(engine, progress), k, text)
    path = engine.bundle.path
    # it may have been replaced, or tuned for another device, while this one measured
    now = read_manifest(path / MANIFEST_NAME)
    if now.files != engine.manifest.files:
        raise FirpError("the bundle was replaced while it was measured", got=f"'{path}'", fix="tune again")
    try:
        write_manifest(path, replace(now, choices={**now.choices, engine.backend.device: choice}))
    except OSError as error:
        got = f"'{path}': {error.strerror}"
        raise FirpError(
            "cannot write to the bundle", got=got, fix="make it writable, or free some disk"
        ) from error
    return choice
