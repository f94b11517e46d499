"""The benchmarks' tables, and the GPU benchmark as far as a double of the device carries it."""

import shutil

import pytest
from support.tensorrt_double import device_engine

from firp.runtime.bundle.limits import Limits


@pytest.fixture
def table(pytestconfig, monkeypatch, tmp_path):
    """The module, writing into a folder of the test's own."""
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    import table

    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    return table


@pytest.fixture
def gpu(table, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "ROWS", (1, 4))
    monkeypatch.setattr(gpu, "CACHED", (30, 100))
    monkeypatch.setattr(gpu, "PASSES", 6)
    return gpu


def test_a_result_says_how_it_was_measured_and_what_was_found(table):
    result = table.Result("speed", "Speed of something")
    rows = result.table("By rows", "rows", "ms")
    rows.add(1, "0.5")
    rows.add(16, "a|b")
    result.note("It was busy.")
    path = result.write(table.Run("python benchmarks/speed.py", "abc1234", "2026-11-21", "a machine"))
    assert path.name == "speed.md"
    assert path.read_text() == (
        "# Speed of something\n\n`python benchmarks/speed.py`\n\n2026-11-21, commit abc1234; a machine.\n\n"
        "## By rows\n\n| rows | ms |\n| --- | --- |\n| 1 | 0.5 |\n| 16 | a\\|b |\n\nIt was busy.\n"
    )


def test_this_machine_and_commit_are_named(table, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/speed.py", "BUNDLE"])
    run = table.this_run()
    assert run.command == "python benchmarks/speed.py BUNDLE"
    assert "core" in run.machine
    assert run.date.startswith("20")


def test_a_row_of_other_columns_is_refused(table):
    rows = table.Result("speed", "Speed").table("By rows", "rows", "ms")
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        rows.add(1)


def test_the_gpu_benchmark_measures_passes(gpu, table, family_bundle, tmp_path):
    engine = device_engine(shutil.copytree(family_bundle("llama")[1], tmp_path / "small"), Limits(200, 1, 32))
    result = table.Result("gpu", "GPU")
    gpu.latency(engine, 10.0, result, "small")
    (passes,) = result.tables
    assert "Double of a GPU" in passes.caption
    assert [row[:2] for row in passes.rows] == [(30, 1), (30, 4), (100, 1), (100, 4)]
    assert [bool(row[-1]) for row in passes.rows] == [True, False, True, False]  # bandwidth: of one row


def test_the_gpu_benchmark_compares_drafted_and_plain_decoding(gpu, table, demo_bundle, tmp_path):
    engine = device_engine(shutil.copytree(demo_bundle, tmp_path / "demo"), Limits(512, 1, 64))
    result = table.Result("gpu", "GPU")
    gpu.trained(engine, 1, result)
    speed, parity = result.tables
    assert float(speed.rows[0][0]) > 0
    assert speed.rows[0][-1]["replays"] > 0
    assert [row[2:4] for row in parity.rows] == [(0, 0), (0, 0)]  # near ties, other differences


def test_every_headline_is_backed_by_a_script_and_a_file(pytestconfig):
    folder = pytestconfig.rootpath / "benchmarks"
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    headlines = [row for row in cells if len(row) == 6 and row[0] not in ("claim", "---")]
    assert len(headlines) == 10
    for claim, _, _, _, script, file in headlines:
        assert (folder / script.strip("`").split()[0]).is_file(), claim
        assert (folder / file.partition("(")[2].rstrip(")")).is_file(), claim
