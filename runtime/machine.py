"""The machine: its processor, and the memory that it and this process have, as Linux tells it.

In: nothing. Out: names, counts, bytes; None for bytes that the system does not tell.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from firp.runtime.errors import FirpError

_GIB = 2**30


def cores() -> int:
    """Processor cores that this process may use, where the system tells; else all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name and architecture, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({platform.machine()})"


def sums_int8_exactly() -> bool:
    """Whether the processor adds products of 8-bit integers without cutting sums off at 16 bits, as
    x86 does before VNNI. False where that is not known.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def available_bytes() -> int | None:
    """Memory that can be had without swapping, in bytes."""
    return _field("/proc/meminfo", "MemAvailable:")


def peak_bytes() -> int | None:
    """The most this process held since it began, or since `reset_peak`. Unlike ru_maxrss it does
    not begin with the parent's.
    """
    return _field("/proc/self/status", "VmHWM:")


def reset_peak() -> None:
    """Measure the peak from here on; where the system refuses, it stays that of the whole
    process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def require_bytes(
    what: str, needed: Mapping[str, int], available: int | None, fix: str | None = None
) -> None:
    """Require memory. Raises FirpError when the parts of `needed`, in bytes by what they are for,
    do not fit into what is there. what: the mistake, as the error's first words; available: None is
    not checked.
    """
    total = sum(needed.values())
    if available is None or total <= available:
        return
    parts = " + ".join(f"{name} {size / _GIB:.2f}" for name, size in needed.items())
    raise FirpError(
        what,
        got=f"{available / _GIB:.2f} GiB free",
        expected=f"{total / _GIB:.2f} GiB" + (f" = {parts}" if len(needed) > 1 else ""),
        fix=fix,
    )


def _field(file: str, name: str) -> int | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
