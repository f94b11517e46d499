"""What Linux says about memory."""

import pytest

from firp.runtime import machine as host_memory
from firp.runtime.errors import FirpError


def test_the_peak_is_that_since_the_reset():
    held = b"\x01" * (200 << 20)
    before = host_memory.peak_bytes()
    assert before > len(held)
    del held
    host_memory.reset_peak()
    assert host_memory.peak_bytes() < before - (100 << 20)
    held = b"\x01" * (150 << 20)
    assert host_memory.peak_bytes() > len(held)
    assert host_memory.available_bytes() > 0


def test_a_system_that_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "Path", lambda name: tmp_path / name.lstrip("/"))
    assert host_memory.available_bytes() is None
    assert host_memory.peak_bytes() is None
    host_memory.reset_peak()


def test_too_little_memory_is_told_with_its_parts():
    needed = {"weights": 3 << 30, "kernels": 1 << 30}
    with pytest.raises(FirpError) as caught:
        host_memory.require_bytes("not enough memory here", needed, 2 << 30, "buy some")
    assert str(caught.value) == (
        "not enough memory here | got 2.00 GiB free, "
        "expected 4.00 GiB = weights 3.00 + kernels 1.00. Fix: buy some"
    )


def test_memory_that_is_just_enough_is_enough():
    host_memory.require_bytes("not enough memory here", {"all": 2 << 30}, 2 << 30)


def test_memory_that_nobody_tells_is_not_checked():
    host_memory.require_bytes("not enough memory here", {"all": 1 << 60}, None)


@pytest.mark.parametrize(
    ("architecture", "flags", "exact"),
    [
        ("x86_64", "flags : fpu avx2", False),
        ("x86_64", "flags : fpu avx2 avx512_vnni", True),
        ("AMD64", "flags : fpu avx_vnni", True),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_x86_without_vnni_does_not_sum_int8_exactly(architecture, flags, exact, monkeypatch, tmp_path):
    if flags:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(host_memory, "Path", lambda name: tmp_path / "cpuinfo")
    monkeypatch.setattr(host_memory.platform, "machine", lambda: architecture)
    assert host_memory.sums_int8_exactly() == exact
