"""Predicted step times, the choice of a tree, and how it is stored and used."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.timed_passes import assert_rows_differ, recorded_tokens

from firp.runtime.bundle.calibration import Calibration, Candidate, LatencyTable, read_latency
from firp.runtime.bundle.format import load_bundle, write_manifest
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.choose import choose
from firp.runtime.tuning.latency import ROWS, measure_latency
from firp.runtime.tuning.tune import tune


def table(slope: float = 0.0) -> LatencyTable:
    """Six layers below, two above; `slope`: of a pass's cost for each further row."""
    rows = (1, 2, 4, 8, 16, 32, 64)
    lower, upper = (tuple(ms * (1 + slope * (count - 1)) for count in rows) for ms in (3.0, 1.5))
    return LatencyTable("test", 6, 8, (64,), rows, (lower,), (upper,), 0.1, 0.2, 0.4)


# twice the slope at 16 times the tokens
LONG = LatencyTable(
    "test", 6, 8, (128, 2048), (1, 9), ((3.0, 4.0), (6.0, 8.0)), ((1.0, 2.0), (2.0, 4.0)), 0.1, 0.2, 0.4
)


def candidate(rows, sources, tokens_per_step, depth=None, undrafted=0.0):
    return Candidate(
        TreeConfig("dynamic", rows, sources, depth), {"greedy": tokens_per_step}, {"greedy": undrafted}
    )


def test_step_times():
    latency = table(slope=0.1)
    assert latency.plain_ms() == pytest.approx(3 + 1.5 + 0.2)
    fused = latency.step_ms(TreeConfig("dynamic", 4, 2), 3)  # 4 rows below, 4 + 2*3 above
    assert fused == pytest.approx(3 * 1.3 + 0.1 + 1.5 * 1.9 + 0.4)
    assert latency.step_ms(TreeConfig("dynamic", 4, None, depth=2), 3) == pytest.approx(
        3 * 1.3 + 0.1 + 1.5 * 2.1 + 0.4
    )
    draft_pass = latency.step_ms(TreeConfig("dynamic", 4, 0), 3)  # and the three pseudo rows of one row
    assert draft_pass == pytest.approx(3 * 1.3 + 1.5 * 1.3 + 0.1 + 1.5 * 1.2 + 0.4)
    bare = 3 + 0.1 + 1.5 * 1.3 + 0.4  # a step without drafts: the root and its pseudo rows
    assert latency.step_ms(TreeConfig("dynamic", 4, 2), 3, undrafted=0.25) == pytest.approx(
        0.75 * fused + 0.25 * bare
    )
    assert latency.lower(128) == pytest.approx(2 * latency.lower(64))  # beyond the table


def test_another_split_moves_layers_and_keeps_the_head():
    moved = table().at_layer(4)
    assert moved.lower(1) == pytest.approx(2.0)  # four layers of 0.5
    assert moved.upper(1) == pytest.approx(1.5 + 2 * 0.5)
    assert moved.at_layer(6).lower_ms[0] == pytest.approx(table().lower_ms[0])
    assert LONG.at_layer(3).lower(1, 2048) == pytest.approx(3.0)
    assert LONG.at_layer(3).upper(1, 2048) == pytest.approx(2.0 + 3 * 1.0)


def test_between_what_was_measured_it_is_linear_in_rows_and_in_cached_tokens():
    assert LONG.lower(5, 128) == pytest.approx(3.5)
    assert LONG.lower(5, 1088) == pytest.approx((3.5 + 7.0) / 2)
    assert LONG.lower(1, 0) == pytest.approx(3.0)
    assert LONG.lower(18, 128) == pytest.approx(8.0)  # beyond the last rows in proportion
    assert LONG.lower(1, 2048 + 640) == pytest.approx(6.0 + 1.0)  # beyond the last context as before it
    assert LONG.plain_ms(2048) == pytest.approx(6.0 + 2.0 + 0.2)
    assert LONG.step_ms(TreeConfig("dynamic", 1, 1), 8, cached=2048) == pytest.approx(6 + 4 + 0.1 + 0.4)


def test_a_tree_is_chosen_for_its_context():
    """Rows are dear after many tokens here."""
    dear = dataclasses.replace(LONG, lower_ms=((3.0, 4.0), (6.0, 30.0)))
    calibration = Calibration((candidate(2, 1, 1.3), candidate(9, 1, 2.2)))
    early, late = (choose(calibration, dear, 3, "greedy", cached) for cached in (128, 2048))
    assert (early.tree.rows, late.tree.rows) == (9, 2)
    assert (early.cached_tokens, late.cached_tokens) == (128, 2048)


def test_free_rows_make_large_trees_and_dear_rows_none():
    calibration = Calibration(
        (candidate(4, 0, 1.6), candidate(4, 1, 1.4, undrafted=0.3), candidate(16, None, 2.2))
    )
    free = choose(calibration, table(), 3)
    assert free.tree.rows == 16
    assert free.drafts
    assert free.speedup == pytest.approx(2.2 * 4.7 / 5.0, abs=1e-3)
    dear = choose(calibration, table(slope=0.3), 3)
    assert dear.tree.rows == 4
    assert not dear.drafts
    assert dear.speedup < 1
    with pytest.raises(FirpError, match="no calibrated tree to choose from.*none for sampled"):
        choose(calibration, table(), 3, "sampled")


@pytest.fixture
def calibrated(family_bundle, tmp_path):
    """A bundle of its own, with trees to choose from."""
    bundle = tmp_path / "bundle"
    shutil.copytree(family_bundle("llama")[1], bundle)
    return bundle


def give_trees(monkeypatch, engine, *candidates):
    monkeypatch.setattr(
        engine, "bundle", dataclasses.replace(engine.bundle, calibration=Calibration(candidates))
    )


def test_the_choice_is_stored_for_its_device_and_used(calibrated, monkeypatch):
    engine = Engine.load(calibrated)
    assert engine.choice is None
    assert engine.tree == engine.bundle.tree
    give_trees(monkeypatch, engine, candidate(5, 0, 90.0))
    choice = tune(engine)
    assert choice.drafts
    assert choice.tree == TreeConfig("dynamic", 5, 0)
    tuned = Engine.load(calibrated)
    assert tuned.choice == choice
    assert tuned.tree == choice.tree
    other = Engine.load(calibrated, threads=7)  # another device in all that matters
    assert other.choice is None
    assert other.tree == other.bundle.tree
    request = tuned.request([3, 4, 5], SamplingParams(20, ignore_eos=True))
    assert max(step.rows for step in tuned.steps(request, tuned.tree)) == 5


def test_where_nothing_pays_plain_decoding_is_chosen(calibrated, monkeypatch):
    engine = Engine.load(calibrated)
    give_trees(monkeypatch, engine, candidate(32, None, 1.01))
    assert not tune(engine).drafts
    tuned = Engine.load(calibrated)
    assert tuned.tree is None
    assert tuned.best_tree.rows == 32
    result = tuned.generate([3, 4, 5], SamplingParams(10, ignore_eos=True))
    assert result.stats.tokens_per_step == 1
    explicit = tuned.generate(
        [3, 4, 5], SamplingParams(10, ignore_eos=True), tree=TreeConfig("dynamic", 4, None)
    )
    assert explicit.token_ids == result.token_ids


def test_a_bundle_without_trees_cannot_be_tuned(calibrated):
    before = (calibrated / "firp.json").read_bytes()
    with pytest.raises(FirpError, match="no calibrated trees.*firp calibrate"):
        tune(Engine.load(calibrated))
    assert (calibrated / "firp.json").read_bytes() == before


def test_a_choice_that_does_not_fit_the_predictors_is_refused(calibrated, monkeypatch):
    engine = Engine.load(calibrated)
    give_trees(
        monkeypatch, engine, Candidate(TreeConfig("dynamic", 5, 0, depth=4), {"greedy": 9.0}, {"greedy": 0.0})
    )
    tune(engine)
    with pytest.raises(FirpError, match="bad tree depth"):
        load_bundle(calibrated)


def test_latency_is_measured_for_growing_passes_until_no_tree_could_pay(calibrated, monkeypatch):
    trees = recorded_tokens(monkeypatch)
    latency = measure_latency(Engine.load(calibrated))
    assert_rows_differ(trees)
    assert latency.rows == ROWS[: len(latency.rows)]
    assert len(latency.rows) >= 2
    grids = np.array([latency.lower_ms, latency.upper_ms])
    assert grids.shape == (2, len(latency.contexts), len(latency.rows))
    assert min(grids.min(), latency.predictors_ms, latency.drafted_outside_ms) > 0
    assert latency.prediction_layer == 2
    assert latency.num_hidden_layers == 4


def test_a_latency_file_is_read_strictly(tmp_path):
    choice = choose(Calibration((candidate(4, 0, 1.6),)), table(), 3)
    write_json(tmp_path / "good.json", to_json(choice))
    assert read_latency(tmp_path / "good.json") == table()
    for name, content in (
        ("a", "{}"),
        ("b", "[1]"),
        ("c", "{"),
        ("d", json.dumps({"latency": {"rows": "x"}})),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(BundleError):
            read_latency(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": []},
        {"rows": [1, 2]},
        {"rows": [1, 1, 4, 8, 16, 32, 64]},
        {"lower_ms": [[0.0] * 7]},
        {"lower_ms": [[1.0] * 7] * 2},
        {"contexts": [64, 32]},
        {"contexts": []},
        {"prediction_layer": 8},
        {"num_hidden_layers": 0},
        {"predictors_ms": -1.0},
        {"upper_ms": [[float("nan")] * 7]},
    ],
)
def test_a_table_that_is_no_measurement_is_refused(changes, tmp_path):
    write_json(tmp_path / "bad.json", {"latency": to_json(table()) | changes})
    with pytest.raises(FirpError, match="bad latency table"):
        read_latency(tmp_path / "bad.json")


def test_a_manifest_that_cannot_be_written_leaves_nothing(calibrated, monkeypatch):
    engine = Engine.load(calibrated)
    give_trees(monkeypatch, engine, candidate(5, 0, 90.0))
    before = sorted(path.name for path in calibrated.iterdir())

    def full(path, data):
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("firp.runtime.bundle.format.write_json", full)
    with pytest.raises(FirpError, match="cannot write to the bundle.*No space left"):
        tune(engine)
    assert sorted(path.name for path in calibrated.iterdir()) == before
    assert load_bundle(calibrated).manifest.choices == {}


def test_a_bundle_that_was_replaced_while_it_was_measured_is_left_alone(calibrated, monkeypatch):
    engine = Engine.load(calibrated)
    give_trees(monkeypatch, engine, candidate(5, 0, 90.0))
    other = dataclasses.replace(
        engine.manifest,
        files=engine.manifest.files
        | {"tree.json": dataclasses.replace(engine.manifest.files["tree.json"], sha256="0" * 64)},
    )
    write_manifest(calibrated, other)
    before = (calibrated / "firp.json").read_bytes()
    with pytest.raises(FirpError, match="replaced while it was measured"):
        tune(engine)
    assert (calibrated / "firp.json").read_bytes() == before


def test_choices_of_other_devices_stay(calibrated, monkeypatch):
    engine, other = Engine.load(calibrated), Engine.load(calibrated, threads=7)
    for tuned in (engine, other):
        give_trees(monkeypatch, tuned, candidate(5, 0, 90.0))
        tune(tuned)
    assert set(load_bundle(calibrated).manifest.choices) == {engine.backend.device, other.backend.device}
