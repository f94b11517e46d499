"""Places of a bundle's files: regular ones inside it, with names that a system takes."""

import shutil

import pytest
from support.hostile import edit_manifest, list_again

from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import BundleError


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def test_links_are_refused_though_their_hash_fits(bundle, tmp_path):
    (bundle / "model.safetensors").rename(tmp_path / "outside")
    (bundle / "model.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"link in bundle.*model\.safetensors.*files of its own"):
        load_bundle(bundle)


def test_folders_that_are_links_are_refused_too(bundle, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    (bundle / "folder").symlink_to(tmp_path / "folder")
    list_again(bundle, "folder/notes.txt")
    with pytest.raises(BundleError, match=r"link in bundle.*folder'"):
        load_bundle(bundle)


def test_a_link_to_a_whole_bundle_is_a_bundle(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert load_bundle(tmp_path / "link").manifest == load_bundle(bundle).manifest


def test_a_file_name_beyond_the_system_s_limit_is_one_line(bundle):
    edit_manifest(bundle, lambda data: data["files"].update({"x" * 5000: {"size": 1, "sha256": ""}}))
    with pytest.raises(BundleError, match="bad file name in bundle"):
        load_bundle(bundle)
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle("x" * 5000)


@pytest.mark.parametrize("path", [None, 3, "a\0b", "not UTF-8 \udcff"])
def test_what_is_no_path_is_no_bundle(path):
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(path)
