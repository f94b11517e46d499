"""Checks of the place that a bundle is written to, before anything is written.

In: paths. Out: nothing, or a FirpError: the bundle would replace what it is made from, or files that
are not its own.
"""

from collections.abc import Iterable
from pathlib import Path

from firp.runtime.bundle.engine_record import ENGINES_FOLDER, engine_folders
from firp.runtime.bundle.format import MANIFEST_NAME
from firp.runtime.bundle.json_fields import read_json
from firp.runtime.errors import FirpError


def check_apart(bundle: Path, sources: Iterable[Path | None]) -> None:
    """The bundle neither is, nor holds, nor lies inside what it is made from: replacing it must not
    delete an input. Raises FirpError.
    """
    output = bundle.resolve()
    for source in sources:
        if source and (output.is_relative_to(source.resolve()) or source.resolve().is_relative_to(output)):
            raise FirpError(
                "output and input overlap",
                got=f"'{bundle}' and '{source}'",
                fix="choose another path",
            )


def check_own_files(bundle: Path) -> None:
    """A bundle that is to be replaced holds nothing that its manifest does not list. Raises FirpError."""
    data = read_json(bundle / MANIFEST_NAME)
    listed = data.get("files") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or "format_version" not in data:
        raise FirpError("output exists and is something else", got=f"'{bundle}'", fix="choose another path")
    own = {*listed, MANIFEST_NAME, ENGINES_FOLDER}
    leftover = f".{MANIFEST_NAME}-"  # of a killed writer
    foreign = sorted(
        path.name for path in bundle.iterdir() if path.name not in own and not path.name.startswith(leftover)
    )
    engines = {folder.name for folder in engine_folders(bundle)}
    if (bundle / ENGINES_FOLDER).is_dir():
        found = (path.name for path in (bundle / ENGINES_FOLDER).iterdir())
        # of a killed build
        foreign += sorted(name for name in found if name not in engines and not name.startswith("."))
    if foreign:
        raise FirpError(
            "the bundle to replace holds other files",
            got=", ".join(foreign[:5]),
            fix="move them, or choose another path",
        )
