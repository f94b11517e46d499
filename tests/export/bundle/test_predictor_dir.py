"""The predictor directory: each way in which it can be wrong, or belong to another model."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.small_models import make_model, make_predictors

from firp.export.bundle.predictor_dir import open_predictors, write_predictors
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.calibration import Calibration, Candidate
from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree_config import TreeConfig


class TestPredictorDirectory:
    @pytest.fixture
    def pair(self, tmp_path):
        model = make_model(tmp_path / "model", "llama")
        return model, make_predictors(tmp_path / "predictors", model)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hidden_size": 128}, "another hidden size.*128.*64"),
            ({"prediction_layer": 4}, "a layer that the model lacks"),
            ({"num_predictors": 2}, "does not match predictors.json"),
            ({"model_fingerprint": "0" * 64}, "predictors of another model"),
            ({"format_version": 3}, "unsupported predictors"),
            ({"method": "medusa"}, "unsupported predictors.*medusa"),
            ({"correction_rank": 8}, "unreadable path correction"),
            ({"correction_rank": -1}, "unsupported predictors"),
            ({"shape": 1}, "unknown key.*shape"),
        ],
    )
    def test_each_mismatch_is_refused(self, pair, change, message, tmp_path):
        model, predictors = pair
        info = json.loads((predictors / "predictors.json").read_text())
        (predictors / "predictors.json").write_text(json.dumps(info | change))
        with pytest.raises(CheckpointError, match=message):
            export_bundle(ExportOptions(model, tmp_path / "bundle", predictors))
        assert not (tmp_path / "bundle").exists()

    def test_layer_that_contradicts_the_option(self, pair, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"predictors for another layer.*prediction.layer 3.*expected 2"
        ):
            export_bundle(ExportOptions(pair[0], tmp_path / "bundle", pair[1], prediction_layer=3))

    def test_missing_files(self, pair, tmp_path):
        (pair[1] / "predictors.safetensors").unlink()
        with pytest.raises(
            CheckpointError, match=r"not a predictor directory.*without predictors\.safetensors"
        ):
            export_bundle(ExportOptions(pair[0], tmp_path / "bundle", pair[1]))

    @pytest.fixture
    def calibrated(self, pair):
        """The same predictors with a path correction and trees."""
        model, predictors = pair
        info = dataclasses.replace(
            open_predictors(predictors, open_checkpoint(model)).info, correction_rank=4
        )
        rng = np.random.default_rng(0)
        tables = (rng.standard_normal((193, 4)).astype(np.float32) for _ in range(2))
        correction = PathCorrection(*tables, np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
        calibration = Calibration((Candidate(TreeConfig("dynamic", 4, 0), {"greedy": 1.5}, {"greedy": 0.0}),))
        write_predictors(
            predictors,
            info,
            load_file(predictors / "predictors.safetensors")["predictors.weight"],
            correction,
            calibration,
        )
        return model, predictors

    def test_correction_and_trees_reach_the_bundle(self, calibrated, tmp_path):
        export_bundle(ExportOptions(calibrated[0], tmp_path / "bundle", calibrated[1]))
        bundle = load_bundle(tmp_path / "bundle")
        assert bundle.correction.previous.shape == (193, 4)
        assert bundle.calibration.candidates[0].tree == TreeConfig("dynamic", 4, 0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"previous": np.zeros((192, 4), np.float16)}, "bad path correction"),
            ({"following": np.zeros((193, 5), np.float16)}, "bad path correction"),
            ({"weight": np.ones(3, np.float32)}, "bad path correction"),
            ({"scale": np.zeros((2, 3), np.float32)}, "a scale of 0 or less"),
            ({"previous": np.full((193, 4), np.nan, np.float16)}, "not finite"),
            ({"weight": np.ones((2, 3), np.float16)}, "float32"),
            ({"previous": np.zeros((193, 4), np.float32)}, "float16"),
        ],
    )
    def test_a_bad_correction_is_refused(self, calibrated, change, message, tmp_path):
        file = calibrated[1] / "path_correction.safetensors"
        save_file(load_file(file) | change, file)
        with pytest.raises(CheckpointError, match=message):
            export_bundle(ExportOptions(calibrated[0], tmp_path / "bundle", calibrated[1]))

    @pytest.mark.parametrize(
        "content",
        [
            "{}",
            "[",
            '{"candidates": []}',
            '{"candidates": [{"tree": {}, "tokens_per_step": {"greedy": 1e400}, '
            '"undrafted": {"greedy": 0}}]}',
            '{"candidates": [{"tree": {"rows": 0}, "tokens_per_step": {}, "undrafted": {}}]}',
        ],
    )
    def test_bad_trees_are_refused(self, calibrated, content, tmp_path):
        (calibrated[1] / "calibration.json").write_text(content)
        with pytest.raises(FirpError, match=r"calibration\.json|bad tree size|bad calibrated tree"):
            export_bundle(ExportOptions(calibrated[0], tmp_path / "bundle", calibrated[1]))
