"""Places of a bundle and its files.

In: paths as a user or a manifest gives them. Out: paths that exist, or a BundleError. A file of a
bundle is a regular file inside it: no link leads out of what the manifest's hashes cover.
"""

from pathlib import Path

from firp.runtime.errors import BundleError

_AGAIN = "copy the bundle again, or export it again"


def bundle_folder(path: Path | str) -> Path:
    """A folder that exists. Raises BundleError, which says where an export that was killed left
    it.
    """
    try:
        path = Path(path)
        str(path).encode()  # ONNX Runtime takes no other paths
        if path.is_dir():
            return path
        aside = sorted(path.absolute().parent.glob(f".{path.name}.replaced-*"))
    except (
        OSError,
        TypeError,
        ValueError,
    ) as error:  # a name too long or not UTF-8, no path, a null character
        raise BundleError("no such bundle", got=f"'{path!s:.100}': {error!s:.100}") from error
    fix = f"mv '{aside[0]}' '{path}'" if aside else "write one with firp export"
    raise BundleError("no such bundle", got=f"'{path}'", expected="a directory", fix=fix)


def own_file(bundle: Path, name: str, size: int) -> Path:
    """A regular file of the bundle with this size in bytes. Raises BundleError."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise BundleError("file outside the bundle", got=f"'{name:.100}' in its manifest", fix=_AGAIN)
    file = bundle / name
    try:
        links = [step for step in (file, *file.parents[: len(parts) - 1]) if step.is_symlink()]
        found = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as error:  # a name too long, a null character
        raise BundleError(
            "bad file name in bundle", got=f"'{name:.60}…': {error!s:.100}", fix=_AGAIN
        ) from error
    if links:
        raise BundleError("link in bundle", got=f"'{links[-1]}'", expected="files of its own", fix="cp -rL")
    if found is None:
        raise BundleError("missing file in bundle", got=f"no '{file}'", expected=f"{size} bytes", fix=_AGAIN)
    if found != size:
        raise BundleError(
            "wrong file size in bundle", got=f"{found} bytes in '{file}'", expected=size, fix=_AGAIN
        )
    return file
