"""A folder that appears under its name whole or not at all.

In: the path it is to have. Out: a folder beside it to fill, renamed at the end of the `with` block
if nothing was raised.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firp.runtime.errors import FirpError


def check_target(output: Path, marker: str, force: bool | None = None) -> None:
    """Raises FirpError when `output` exists, unless `force` says that it is replaced and it holds
    `marker`, so is of the kind to be written. None: such a folder is never replaced.
    """
    if not os.path.lexists(output):
        return
    if not (output / marker).is_file():
        raise FirpError(
            "output exists and is something else",
            got=f"'{output}' without {marker}",
            fix="choose another path",
        )
    if not force:
        fix = "choose another path" if force is None else "choose another path, or replace it with --force"
        raise FirpError("output exists", got=f"'{output}'", fix=fix)


@contextmanager
def target_folder(output: Path, marker: str, force: bool | None = None) -> Iterator[Path]:
    """Yield a new folder to fill. It gets its name at the end; on any exception it is removed and
    `output` stays as it was.

    Folders that killed processes left behind are removed too. Raises FirpError when the target
    exists (see `check_target`) or the disk refuses.
    """
    check_target(output, marker, force)
    with disk_errors(output):
        made = [parent for parent in output.absolute().parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-{os.getpid()}-", dir=output.parent))
        folder.chmod(0o777 & ~_umask())
    try:
        yield folder
        check_target(output, marker, force)  # again: it may have appeared meanwhile
        with disk_errors(output):
            _install(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not output.exists():
            for parent in made:  # innermost first
                parent.rmdir()


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn the disk's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        place = error.filename or output.parent
        raise FirpError(
            f"cannot write '{output}'",
            got=f"{error.strerror or error} at '{place}'",
            fix="free some disk, or write elsewhere",
        ) from error


def _remove_leftovers(output: Path) -> None:
    prefix = f".{output.name}.partial-"
    for path in output.parent.iterdir():
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if path.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _install(folder: Path, output: Path) -> None:
    """Give the folder its name; what it replaces is moved aside first, and put back if the renaming
    fails.
    """
    if not os.path.lexists(output):
        folder.rename(output)
        return
    aside = output.with_name(f".{output.name}.replaced-{os.getpid()}")
    output.rename(aside)
    try:
        folder.rename(output)
    except BaseException:
        aside.rename(output)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)
