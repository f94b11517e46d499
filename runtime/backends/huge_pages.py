"""Huge pages for the weights that ONNX Runtime laid out. A pass reads all of them, and in pages of 4 KiB
these are more addresses than a processor keeps: it looks most of them up anew.

In: what the process had mapped before its graphs were loaded. Out: what came after in pages of 2 MiB, as
far as Linux gives them; elsewhere, and where it refuses, nothing changes.
"""

import ctypes
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

_COLLAPSE = 25  # MADV_COLLAPSE of madvise(2), Linux 6.1 and later
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_PRESENT = np.uint64(1 << 63)  # of an entry in /proc/self/pagemap
_SHARE = 0.9  # of a block's pages that must be there: others would become memory in use


def private_memory() -> list[range]:
    """Addresses of what this process has mapped that is no file, writable and its own, ascending."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, access, _, _, inode, *name = line.split()
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            found.append(range(start, stop))
    return found


def use_huge_pages(before: Sequence[range]) -> threading.Thread | None:
    """Begin to turn memory that was not there before into huge pages, beside whatever else runs; it takes
    about a second for 500 MB. None where the system has none. before: of `private_memory`.
    """
    try:
        size = int(_SIZE_FILE.read_text())
    except (OSError, ValueError):
        return None
    blocks = list(full_blocks(grown(before, private_memory()), size))
    thread = threading.Thread(target=_collapse, args=(blocks,), name="firp huge pages", daemon=True)
    thread.start()
    return thread


def full_blocks(memory: Iterable[range], size: int) -> Iterator[range]:
    """Aligned blocks of so many bytes, nearly all of whose pages are in use."""
    for part in memory:
        first, last = -(-part.start // size), part.stop // size
        if first >= last:
            continue
        entries = (last - first) * size // mmap.PAGESIZE
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pages:
                pages.seek(first * size // mmap.PAGESIZE * 8)
                read = np.frombuffer(pages.read(entries * 8), np.uint64)
        except OSError:
            return
        if len(read) == entries:
            used = ((read & _PRESENT) != 0).reshape(last - first, -1).mean(1)
            yield from (
                range((first + i) * size, (first + i + 1) * size) for i in np.flatnonzero(used >= _SHARE)
            )


def grown(before: Sequence[range], now: Sequence[range]) -> Iterator[range]:
    """What is mapped now and was not before; both ascending."""
    for part in now:
        start = part.start
        for old in before:
            if old.stop <= start or old.start >= part.stop:
                continue
            if old.start > start:
                yield range(start, old.start)
            start = old.stop
        if start < part.stop:
            yield range(start, part.stop)


def _collapse(blocks: Sequence[range]) -> None:
    """Make each block one huge page. Its memory may be gone meanwhile, or another's: then it is refused, or
    gets a huge page, too.
    """
    madvise = ctypes.CDLL(None).madvise
    for block in blocks:
        madvise(ctypes.c_void_p(block.start), ctypes.c_size_t(len(block)), _COLLAPSE)
