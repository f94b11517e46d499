"""Memory of this machine and of this process, as Linux tells it.

In: nothing. Out: bytes, or None where the system does not say.
"""

from pathlib import Path


def available_bytes() -> int | None:
    """What can be had without swapping."""
    return _field("/proc/meminfo", "MemAvailable:")


def peak_bytes() -> int | None:
    """The most this process held since it began, or since `reset_peak`. Unlike ru_maxrss it does
    not begin with the parent's.
    """
    return _field("/proc/self/status", "VmHWM:")


def reset_peak() -> None:
    """Measure the peak from here on; where the system refuses, it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _field(file: str, name: str) -> int | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
