"""Latency of several sequences: measured, read, interpolated."""

import dataclasses

import pytest
from support.timed_passes import assert_rows_differ, recorded_tokens

from firp.runtime.bundle.calibration import BatchTimes, LatencyTable, read_latency
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, FirpError
from firp.runtime.tuning.batches import SEQUENCES, measure_batches
from firp.runtime.tuning.latency import undisturbed

ALONE = LatencyTable("test", 6, 8, (64,), (1, 2, 16), ((3.0, 3.3, 8.0),), ((1.5, 1.65, 4.0),), 0.1, 0.2, 0.4)
FOUR = BatchTimes(4, (64, 128), (1, 4), ((6.0, 12.0), (8.0, 20.0)), ((3.0, 6.0), (4.0, 10.0)))
TABLE = dataclasses.replace(ALONE, batches=(FOUR,))


def test_between_numbers_of_sequences_times_are_linear_and_beyond_in_proportion():
    assert TABLE.lower(1, 64) == ALONE.lower(1, 64) == 3.0
    assert TABLE.lower(1, 64, 4) == 6.0
    assert TABLE.lower(1, 64, 2) == pytest.approx(4.0)
    assert TABLE.upper(4, 96, 4) == pytest.approx(8.0)
    assert TABLE.lower(1, 64, 8) == pytest.approx(12.0)
    assert TABLE.lower(8, 64, 4) == pytest.approx(24.0)


def test_where_one_sequence_was_measured_rows_of_several_are_rows_of_one(tmp_path):
    """Also a record of before, which has no such key."""
    assert ALONE.lower(1, 64, 2) == ALONE.lower(2, 64)
    record = to_json(ALONE)
    del record["batches"]
    write_json(tmp_path / "old.json", {"latency": record})
    assert read_latency(tmp_path / "old.json") == ALONE
    write_json(tmp_path / "new.json", {"latency": to_json(TABLE)})
    assert read_latency(tmp_path / "new.json") == TABLE


@pytest.mark.parametrize(
    "changes",
    [{"sequences": 1}, {"rows": [1]}, {"lower_ms": [[0.0, 1.0]] * 2}, {"contexts": [128, 64]}, {"lanes": 3}],
)
def test_a_batch_that_is_no_measurement_is_refused(changes, tmp_path):
    record = to_json(TABLE)
    record["batches"][0].update(changes)
    write_json(tmp_path / "bad.json", {"latency": record})
    with pytest.raises((FirpError, BundleError), match="bad latency table|unknown key"):
        read_latency(tmp_path / "bad.json")


def test_sequences_are_measured_together(family_bundle, monkeypatch):
    engine = Engine.load(family_bundle("llama")[1], threads=1)
    latency = dataclasses.replace(
        ALONE, contexts=(16, 40, 90), lower_ms=ALONE.lower_ms * 3, upper_ms=ALONE.upper_ms * 3
    )
    trees = recorded_tokens(monkeypatch)
    found = measure_batches(engine, latency)
    assert_rows_differ(trees)
    assert [batch.sequences for batch in found] == list(SEQUENCES)
    assert [batch.rows for batch in found] == [(1, 2, 4, 8), (1, 2, 4), (1, 2)]
    assert {batch.contexts for batch in found} == {(16, 40)}
    assert min(ms for batch in found for times in (*batch.lower_ms, *batch.upper_ms) for ms in times) > 0


def test_what_was_slower_after_fewer_tokens_or_of_fewer_rows_was_disturbed():
    assert undisturbed([[21.0, 23.0], [12.0, 25.0], [13.0, 24.0]]) == (
        (12.0, 23.0),
        (12.0, 24.0),
        (13.0, 24.0),
    )
    assert undisturbed([[5.0, 9.0, 4.0, 6.0]]) == ((4.0, 4.0, 4.0, 6.0),)
