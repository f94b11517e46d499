"""The GPU benchmark, as far as a double of the device carries it."""

import shutil

import pytest
from support.tensorrt_double import device_engine

from firp.runtime.bundle.limits import Limits


@pytest.fixture
def gpu(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    import gpu

    monkeypatch.setattr(gpu, "ROWS", (1, 4))
    monkeypatch.setattr(gpu, "CACHED", (30, 100))
    monkeypatch.setattr(gpu, "PASSES", 6)
    return gpu


def test_the_gpu_benchmark_measures_passes_and_decoding(gpu, family_bundle, demo_bundle, tmp_path, capsys):
    engine = device_engine(shutil.copytree(family_bundle("llama")[1], tmp_path / "small"), Limits(200, 1, 32))
    gpu.latency(engine, bandwidth=10.0)
    table = capsys.readouterr().out
    assert (
        table.count("│ 100 ") == table.count("│ 30 ") == 2
        and "Double of a GPU" in table
        and table.count("%") == 6
    )
    trained = device_engine(shutil.copytree(demo_bundle, tmp_path / "demo"), Limits(512, 1, 64))
    gpu.trained(trained, 1)
    lines = capsys.readouterr().out.splitlines()
    assert "speedup" in lines[0] and "'replays': " in lines[0]
    assert len(lines) == 3 and all("near ties 0, other differences 0" in line for line in lines[1:])
