"""How long passes of a model take on this machine, before it has predictors.

In: a model directory, a predictor directory's description. Out: the latency table that a
calibration chooses with.
"""

import tempfile
from pathlib import Path

import numpy as np

from firp.export.bundle.predictor_dir import PredictorInfo, write_predictors
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.checkpoint import Checkpoint
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.progress import Progress
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.tuning.latency import measure_latency


def latency_here(
    model_dir: Path, checkpoint: Checkpoint, info: PredictorInfo, progress: Progress
) -> LatencyTable:
    """The latency table of an export that is thrown away, with predictors of no meaning: how long
    guesses take does not depend on what they are. Raises FirpError where the model cannot be
    exported.
    """
    size = checkpoint.config.hidden_size
    tables = np.zeros((checkpoint.config.vocab_size, info.correction_rank), np.float32)
    scales = np.ones((2, info.num_predictors), np.float32)
    weight = np.tile(np.eye(size, dtype=np.float32), (info.num_predictors, 1, 1))
    with tempfile.TemporaryDirectory() as scratch:
        predictors = Path(scratch) / "predictors"
        bundle = Path(scratch) / "bundle"
        predictors.mkdir()
        write_predictors(predictors, info, weight, PathCorrection(tables, tables, scales, scales))
        try:
            export_bundle(ExportOptions(model_dir, bundle, predictors), progress=progress)
        except FirpError as error:
            raise FirpError(
                f"cannot measure latency here: {error.what}",
                got=error.got,
                expected=error.expected,
                fix="give the target's table with --latency",
            ) from error
        return measure_latency(Engine.load(bundle, check_hashes=False), progress)
