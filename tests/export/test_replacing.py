"""Replacing a folder loses nothing: broken off at every instant, repaired by the next start."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import every_instant
from support.command_line import fails

from firp.export import leftovers
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.exchange import exchange
from firp.export.target_folder import disk_errors, target_folder
from firp.runtime.bundle.engine_record import engine_folders
from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import BundleError, FirpError

BUNDLE = ("bundle", "firp.json")
ENGINES = ("engines/tensorrt-rtx-1.7.1.116-sm89", "engine.json")
DEAD = 2**22 + 1  # beyond the largest process number


def outcomes(folder, name, marker, how, can_exchange):
    command = [sys.executable, every_instant.__file__, folder, name, marker, how, can_exchange]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture
def model(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[0], tmp_path / "model")


@pytest.fixture
def scene(tmp_path):
    """A whole old folder named "out"."""
    every_instant.fill(tmp_path / "out", every_instant.content("old", "m.json"))
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("can_exchange", ["yes", "no"])
@pytest.mark.parametrize("how", ["interrupt", "kill"])
@pytest.mark.parametrize("target", [BUNDLE, ENGINES], ids=["bundle", "engines"])
def test_no_instant_loses_the_old_folder_and_none_leaves_anything(target, how, can_exchange, tmp_path):
    found = outcomes(tmp_path / "scratch", *target, how, can_exchange)
    assert len(found) > 50  # system calls, before and after each
    assert {seen["next"] for seen in found} == {"old", "new"}
    assert [seen for seen in found if seen["others"]] == []
    absent = [seen["instant"] for seen in found if seen["first"] not in ("old", "new")]
    if (how, can_exchange) == ("kill", "no"):
        assert 0 < len(absent) <= 4  # between two renames, until the next start
    else:
        assert absent == []


def test_two_folders_exchange_their_names_where_the_system_can(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / name).mkdir(parents=True)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])


def test_what_cannot_be_exchanged_stays(scene):
    assert not exchange(scene / "out", scene / "absent")
    assert names(scene) == ["out"]


@pytest.mark.parametrize(
    "name",
    [f".out.replaced-{DEAD}", f".out.replaced-{leftovers.this_host()}-{DEAD}-x"],
    ids=["older form", "today's form"],
)
def test_the_next_export_puts_back_what_a_killed_one_moved_aside(name, model, tmp_path):
    export_bundle(ExportOptions(model, tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / name)
    with pytest.raises(FirpError, match="output exists.*--force"):
        export_bundle(ExportOptions(model, tmp_path / "out"))
    load_bundle(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / name)
    export_bundle(ExportOptions(model, tmp_path / "out", dtype="float16", force=True))
    assert load_bundle(tmp_path / "out").manifest.precision.weights == "float16"
    assert names(tmp_path) == ["model", "out"]


def test_a_reader_is_told_where_the_bundle_is(family_bundle, tmp_path):
    shutil.copytree(family_bundle("llama")[1], tmp_path / f".out.replaced-{DEAD}")
    with pytest.raises(BundleError, match=r"no such bundle.*Fix: mv '.*\.out\.replaced-.*' '.*out'"):
        load_bundle(tmp_path / "out")


def test_an_aside_beside_its_successor_is_removed(scene):
    every_instant.fill(scene / f".out.replaced-{DEAD}", {"m.json": "older"})
    leftovers.repair(scene / "out")
    assert names(scene) == ["out"]
    assert every_instant.found(scene / "out", "m.json") == "old"


def test_engines_that_are_not_finished_are_no_engines(tmp_path):
    for name in ("tensorrt-1-sm89", ".tensorrt-1-sm90.partial-1-x"):
        every_instant.fill(tmp_path / "engines" / name, {"engine.json": "{}"})
    assert [folder.name for folder in engine_folders(tmp_path)] == ["tensorrt-1-sm89"]


def test_leftovers_of_all_engines_are_mended_at_once(tmp_path):
    every_instant.fill(tmp_path / f".tensorrt-1-sm89.replaced-{DEAD}", {"engine.json": "{}"})
    every_instant.fill(tmp_path / f".tensorrt-2-sm89.partial-{DEAD}-x", {"lower.plan": "half"})
    leftovers.repair_all(tmp_path)
    assert names(tmp_path) == ["tensorrt-1-sm89"]


def test_a_folder_that_is_being_written_stays_though_its_process_seems_dead(scene, monkeypatch):
    """A process of another container: its number means nothing here, its lock does."""
    monkeypatch.setattr(leftovers.os, "getpid", lambda: DEAD)
    with target_folder(scene / "out", "m.json", force=True) as folder:
        leftovers.repair(scene / "out")
        assert folder.is_dir()
        every_instant.fill(folder, every_instant.content("new", "m.json"))
    assert every_instant.found(scene / "out", "m.json") == "new"


@pytest.mark.parametrize(
    ("owner", "stays"),
    [
        (f"{leftovers.this_host()}-{os.getpid()}-x", True),
        (f"{leftovers.this_host()}-{DEAD}-x", False),
        (f"00000000-{DEAD}-x", True),  # of another host
        (f"{DEAD}", False),
    ],
    ids=["running here", "dead here", "another host", "dead, of an older form"],
)
def test_without_locks_the_owner_s_number_decides_and_only_on_its_host(owner, stays, scene, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (scene / f".out.partial-{owner}").mkdir()
    leftovers.repair(scene / "out")
    assert (f".out.partial-{owner}" in names(scene)) is stays


@pytest.mark.parametrize(("age_s", "stays"), [(60, True), (2 * 86_400, False)])
def test_what_another_host_left_is_removed_when_it_is_quiet(age_s, stays, scene):
    """Some file systems keep the locks of two machines apart, so a free lock says little."""
    partial = scene / f".out.partial-00000000-{os.getpid()}-x"
    every_instant.fill(partial, every_instant.content("half", "m.json"))
    then = time.time() - age_s
    for path in (*partial.rglob("*"), partial):
        os.utime(path, (then, then))
    leftovers.repair(scene / "out")
    assert partial.exists() == stays


def test_what_another_host_moved_aside_is_put_back_at_once(scene):
    (scene / "out").rename(scene / f".out.replaced-00000000-{DEAD}-x")
    leftovers.repair(scene / "out")
    assert names(scene) == ["out"]


IN_A_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
REPAIR = "import sys; from pathlib import Path; from firp.export import leftovers as found; {}"


@pytest.mark.parametrize("locks", [True, False])
def test_a_container_leaves_what_another_one_writes(locks, scene):
    """Both have the machine's name, and process numbers of their own."""
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    without = "found.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError()); "
    script = REPAIR.format(("" if locks else without) + "found.repair(Path(sys.argv[1]))")
    command = [*IN_A_CONTAINER, sys.executable, "-c", script, str(scene / "out")]
    with leftovers.unfinished_folder(scene / "out") as folder:
        every_instant.fill(folder, every_instant.content("half", "m.json"))
        subprocess.run(command, check=True)
        assert sorted(path.name for path in folder.iterdir()) != []
    assert names(scene) == ["out"]


def test_cleaning_up_never_hides_the_reason(tmp_path):
    with pytest.raises(ZeroDivisionError), target_folder(tmp_path / "made" / "out", "m.json"):
        (tmp_path / "made" / "somebody else's").touch()
        _ = 1 / 0
    assert names(tmp_path / "made") == ["somebody else's"]


def test_a_folder_is_not_replaced_from_inside(model, tmp_path):
    export_bundle(ExportOptions(model, tmp_path / "out"))
    before = names(tmp_path / "out")
    line = fails("export", model, "-o", ".", "--force", "--no-verify", cwd=tmp_path / "out")
    assert "cannot replace the folder that this command runs in" in line
    assert names(tmp_path / "out") == before


def test_a_path_that_ends_with_dots_makes_no_folder(model, tmp_path):
    with pytest.raises(FirpError, match="output exists and is something else"):
        export_bundle(ExportOptions(model, tmp_path / "newx" / ".."))
    assert names(tmp_path) == ["model"]


def test_a_copy_that_fails_names_the_target():
    with pytest.raises(FirpError, match="No space left on device at 'target'.*free some disk"):  # noqa: SIM117
        with disk_errors(Path("out")):
            raise OSError(28, "No space left on device", "source", None, "target")


def test_the_disk_check_counts_every_file(model, tmp_path, monkeypatch):
    with (model / "chat_template.jinja").open("wb") as file:
        file.truncate(3 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 << 30))
    with pytest.raises(FirpError, match=r"not enough disk space . got 2048.0 MiB free, expected 307\d"):
        export_bundle(ExportOptions(model, tmp_path / "out"))
