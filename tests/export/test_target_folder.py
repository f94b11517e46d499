"""What an export may replace, and what it leaves behind."""

import shutil

import pytest
from support.small_models import make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.target_folder import target_folder
from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import BundleError, FirpError


@pytest.fixture
def model(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[0], tmp_path / "model")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_force_never_deletes_what_the_bundle_is_made_from(model, tmp_path):
    predictors = make_predictors(tmp_path / "predictors", model)
    for folder in (model, predictors):
        (folder / "firp.json").write_text('{"format_version": 1, "files": {}}')
    before = names(model), names(predictors)
    for output in (model, predictors, tmp_path, model / "inside"):
        with pytest.raises(FirpError, match="overlap|something else"):
            export_bundle(ExportOptions(model, output, predictors, force=True))
    assert (names(model), names(predictors)) == before


def test_force_never_deletes_files_that_are_not_the_bundle_s(model, tmp_path):
    options = ExportOptions(model, tmp_path / "bundle", force=True)
    export_bundle(options)
    export_bundle(options)
    (tmp_path / "bundle" / "notes.txt").write_text("keep me")
    with pytest.raises(FirpError, match="holds other files.*notes.txt"):
        export_bundle(options)
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "keep me"
    (tmp_path / "bundle" / "engines").mkdir()
    (tmp_path / "bundle" / "notes.txt").rename(tmp_path / "bundle" / "engines" / "notes.txt")
    with pytest.raises(FirpError, match="holds other files.*notes.txt"):
        export_bundle(options)
    load_bundle(tmp_path / "bundle")


def test_force_on_a_link_replaces_the_link(model, tmp_path):
    export_bundle(ExportOptions(model, tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    export_bundle(ExportOptions(model, tmp_path / "link", dtype="float16", force=True))
    assert load_bundle(tmp_path / "link").manifest.precision.compute == "float16"
    assert load_bundle(tmp_path / "real").manifest.precision.compute == "float32"
    assert names(tmp_path) == ["link", "model", "real"]


def test_a_failed_export_leaves_no_parent_folders(model, tmp_path):
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer does not load.*model/tokenizer.json"):
        export_bundle(ExportOptions(model, tmp_path / "a" / "b" / "bundle"))
    with pytest.raises(ZeroDivisionError), target_folder(tmp_path / "a" / "b" / "bundle", "firp.json"):
        _ = 1 / 0
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_other_things_are_never_replaced(kind, model, tmp_path):
    output = tmp_path / "output"
    {"file": output.touch, "folder": output.mkdir, "dangling link": lambda: output.symlink_to("nowhere")}[
        kind
    ]()
    with pytest.raises(FirpError, match="output exists and is something else"):
        export_bundle(ExportOptions(model, output, force=True))
    assert names(tmp_path) == ["model", "output"]


def test_two_exports_at_once_do_not_meet(model, tmp_path):
    with target_folder(tmp_path / "out", "firp.json") as first:
        with target_folder(tmp_path / "out", "firp.json") as second:
            assert first != second
            (second / "firp.json").write_text("second")
        (first / "firp.json").write_text("first")
        with pytest.raises(FirpError, match="output exists"), target_folder(tmp_path / "out", "firp.json"):
            pass
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out" / "firp.json").read_text() == "first"
    assert names(tmp_path) == ["model", "out"]
