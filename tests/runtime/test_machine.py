"""What Linux says about memory."""

from firp.runtime import machine as host_memory


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


def test_a_system_that_does_not_say():
    assert host_memory._field("/proc/no-such-file", "VmHWM:") is None
