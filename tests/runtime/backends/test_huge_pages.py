"""Memory that came while graphs were loaded lies in huge pages, where the system has them."""

import ctypes
import mmap
import re
from pathlib import Path

import pytest

from firp.runtime.backends import huge_pages
from firp.runtime.backends.huge_pages import full_blocks, grown, private_memory, use_huge_pages

MIB = 2**20
SIZE = 2 * MIB


class Mapped:
    """Private memory of so many MiB, all of it used but for the last `unused`."""

    def __init__(self, mib, unused=0):
        self.memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        used = (mib - unused) * MIB
        self.memory[:used] = b"w" * used
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.addresses = range(self.start, self.start + mib * MIB)

    def __contains__(self, block):
        return self.addresses.start <= block.start and block.stop <= self.addresses.stop

    def huge_bytes(self):
        """Of the regions that hold it."""
        found = inside = 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if region := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                start, stop = (int(address, 16) for address in region.groups())
                inside = start < self.addresses.stop and stop > self.addresses.start
            elif inside and line.startswith("AnonHugePages:"):
                found += int(line.split()[1]) * 1024
        return found


def test_blocks_are_whole_aligned_and_in_use():
    mapped = Mapped(16, unused=8)
    blocks = list(full_blocks([mapped.addresses], SIZE))
    assert 3 <= len(blocks) <= 4
    assert all(block in mapped and block.start % SIZE == 0 and len(block) == SIZE for block in blocks)
    assert max(block.stop for block in blocks) <= mapped.start + 8 * MIB


def test_only_what_came_since_becomes_huge():
    old = Mapped(16)
    before, was = private_memory(), old.huge_bytes()
    new = Mapped(64)
    text = new.memory[:]
    thread = use_huge_pages(before)
    if thread is None:
        pytest.skip("this system has no huge pages")
    thread.join()
    assert new.memory[:] == text
    blocks = list(full_blocks(grown(before, private_memory()), SIZE))
    mine = next(block for block in blocks if block in new)
    assert not any(block in old for block in blocks)
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(mine.start), ctypes.c_size_t(SIZE), 25):
        pytest.skip("this system gives none when it is asked")
    assert new.huge_bytes() > was  # as many as it finds whole pieces of memory for


def test_what_was_there_before_is_left_out_however_regions_joined():
    before = [range(10, 20), range(30, 40)]
    now = [range(5), range(8, 25), range(30, 40), range(40, 50)]
    assert list(grown(before, now)) == [range(5), range(8, 10), range(20, 25), range(40, 50)]


def test_where_a_system_tells_nothing_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_SIZE_FILE", tmp_path / "none")
    assert use_huge_pages([]) is None
