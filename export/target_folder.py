"""A folder that appears under its name whole or not at all.

In: the path it is to have. Out: a folder beside it to fill, which gets its name at the end of the
`with` block if nothing was raised. What it replaces is there under its name until that moment: both
swap in one move where the system can. Elsewhere the old one is moved aside for an instant, and put
back on any exception, or by the next start after a kill (`firp.export.leftovers`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from firp.export.exchange import exchange
from firp.export.leftovers import held, hidden_name, located, remove, repair, unfinished_folder
from firp.runtime.errors import FirpError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(output: Path, marker: str, force: bool | None = None) -> None:
    """Check that `output` may be written.

    Raises FirpError when it exists, unless `force` says that it is replaced and it holds `marker`,
    so is of the kind to be written. None: such a folder is never replaced.
    """
    with disk_errors(output):
        place = located(output)
    if not os.path.lexists(place):
        return
    if not (place / marker).is_file():
        raise FirpError(
            "output exists and is something else",
            got=f"'{output}' without {marker}",
            fix="choose another path",
        )
    if not force:
        fix = "choose another path" if force is None else "choose another path, or replace it with --force"
        raise FirpError("output exists", got=f"'{output}'", fix=fix)
    if _working_folder().is_relative_to(place):
        raise FirpError(
            "cannot replace the folder that this command runs in",
            got=f"'{output}'",
            fix="run it from another folder",
        )


@contextmanager
def target_folder(output: Path, marker: str, force: bool | None = None) -> Iterator[Path]:
    """Yield a new folder to fill. It gets its name at the end; on any exception it is removed and
    `output` stays as it was.

    What killed processes left is put back or removed first. Raises FirpError when the target exists
    (see `check_target`) or the disk refuses.
    """
    with disk_errors(output):
        place = located(output)
        repair(place)
    check_target(output, marker, force)
    made = [parent for parent in place.parents if not parent.exists()]
    try:
        with ExitStack() as stack:
            with disk_errors(output):
                place.parent.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(unfinished_folder(place))
            yield folder
            check_target(output, marker, force)  # again: it may have appeared meanwhile
            with disk_errors(output):
                _install(folder, place)
    finally:
        if not os.path.lexists(place):
            for parent in made:  # innermost first
                with suppress(
                    OSError
                ):  # another process uses it by now; why we are here is what the user must see
                    parent.rmdir()


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn the disk's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or output.parent  # of a copy the target, not the source
        fix = "free some disk, or write elsewhere" if error.errno in _FULL else "write elsewhere"
        raise FirpError(
            f"cannot write '{output}'", got=f"{error.strerror or error} at '{place}'", fix=fix
        ) from error


def _install(folder: Path, output: Path) -> None:
    """Give the folder its name. What had it is left under the folder's own, or removed; if the
    renaming fails, it is put back.
    """
    if not os.path.lexists(output):
        folder.rename(output)
        return
    if exchange(folder, output):
        return
    suffix = folder.name.removeprefix(hidden_name(output, "partial"))
    aside = output.with_name(hidden_name(output, "replaced") + suffix)
    nobodys = folder.with_name(
        f"{folder.name}-old"
    )  # a name that is never put back: half removed, it must not be
    with held(output):
        try:
            output.rename(aside)
            folder.rename(output)
        finally:
            if os.path.lexists(aside):
                aside.rename(nobodys if os.path.lexists(output) else output)
            remove(nobodys)


def _working_folder() -> Path:
    """An absolute path without links; the root where the folder was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")
