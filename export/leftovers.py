"""Folders that are being written or replaced, and what killed processes leave of them.

In: the path that a folder is to have. Out: a hidden folder beside it that no other process touches
while this one lives; what dead processes left is put back or removed.

`.NAME.partial-HOST-PID-*` is unfinished, or already replaced, and nobody's loss.
`.NAME.replaced-HOST-PID-*` is whole: the old NAME on its way out, put back where NAME is missing.
Their owner holds a shared lock (flock) on them, which ends with the process and is seen from other
containers too, where the file system passes locks on. HOST stands for the machine's name, its start and
the namespace of process numbers, so two containers never have the same one. What another host left is
removed when its lock is free and nothing in it has changed for a day; where a folder cannot be locked,
the process number tells whether the owner lives, and only its own host removes it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-((?P<host>[0-9a-f]{8})-)?(?P<pid>\d+)(-.*)?", re.DOTALL
)
_QUIET_S = 86_400  # a running export writes more often than once a day


def located(output: Path) -> Path:
    """The absolute path that a folder is replaced under: links before its last component are
    followed, the last one is not.
    """
    path = output.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def repair(output: Path) -> None:
    """Put `output` back where a killed process left it moved aside, and remove what others left of
    it.
    """
    place = located(output)
    _repair(place.parent, place.name)


def repair_all(parent: Path) -> None:
    """`repair` of every folder that lies, or lay, in `parent`."""
    _repair(parent, None)


def _repair(parent: Path, name: str | None) -> None:
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if not found or name not in (None, found["name"]):
            continue
        with _claimed(path) as claimed:
            if claimed and found["kind"] == "replaced" and not os.path.lexists(parent / found["name"]):
                path.rename(parent / found["name"])
            elif claimed and (_is_own_host(found) or _is_quiet(path)):
                remove(path)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """Yield a new empty folder beside `output`, and remove what has its name in the end."""
    folder, lock = _new_folder(output)
    try:
        yield folder
    finally:
        try:
            remove(folder)
        finally:
            _unlock(lock)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from taking the folder for a dead one's, whatever its name is
    meanwhile.
    """
    lock = _lock(path)
    try:
        yield
    finally:
        _unlock(lock)


def hidden_name(output: Path, kind: str) -> str:
    """The beginning of a name that `repair` knows; kind: "partial" or "replaced"."""
    return f".{output.name}.{kind}-{this_host()}-{os.getpid()}-"


def remove(path: Path) -> None:
    """Remove a folder, or a link, as far as the system lets us."""
    if path.is_symlink():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)  # also where nothing is


def _new_folder(output: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=hidden_name(output, "partial"), dir=output.parent))
        lock = _lock(folder)
        if lock is None or (folder.exists() and os.path.samestat(os.fstat(lock), folder.stat())):
            folder.chmod(0o777 & ~_umask())
            return folder, lock
        _unlock(lock)  # another process took it for a leftover before it was locked


def _lock(path: Path) -> int | None:
    """A descriptor that holds a shared lock; None where the system has none for this folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Tell whether no living process owns this leftover; none can begin to, inside the block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a link, or gone
        yield not _owner_lives(path)
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            claimed = True
        except BlockingIOError:
            claimed = False
        except OSError:  # a file system without such locks
            claimed = not _owner_lives(path)
        yield claimed
    finally:
        os.close(descriptor)


def _owner_lives(path: Path) -> bool:
    """Tell whether the process that the name tells of may be alive: one on another host always
    may.
    """
    found = _LEFTOVER.fullmatch(path.name)
    if not _is_own_host(found):
        return True
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_own_host(found: re.Match) -> bool:
    return found["host"] in (None, this_host())


def _is_quiet(path: Path) -> bool:
    """Tell whether nothing in a folder has changed for a day."""
    changes = [_changed(path), *(_changed(entry) for entry in path.rglob("*"))]
    return time.time() - max(changes) > _QUIET_S


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # it vanished a moment ago
        return time.time()


def this_host() -> str:
    """A short name, fit for a file name, of where the numbers of processes count: of this machine
    since its start, and of this container.
    """
    seen = [socket.gethostname()]
    with suppress(OSError):
        seen.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        seen.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:8]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
