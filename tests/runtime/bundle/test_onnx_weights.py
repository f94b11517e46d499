"""Weights come from the file that the format names, whose hash is checked, and from nowhere else."""

import hashlib
import json
import os
import shutil

import onnx
import pytest

from firp.export.tensorrt.build import graph_weight_bytes
from firp.runtime.bundle.format import load_bundle, manifest_digest
from firp.runtime.bundle.onnx_weights import check_weights, weight_file
from firp.runtime.errors import BundleError


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def list_again(bundle, *names):
    """The manifest as an author of hostile bundles writes it: every size and hash fits."""
    file = bundle / "firp.json"
    data = json.loads(file.read_text())
    del data["sha256"]
    for name in names:
        content = (bundle / name).read_bytes()
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        data["files"][name] = entry
    file.write_text(json.dumps({**data, "sha256": manifest_digest(data)}))


def edit(bundle, change, name="lower.onnx"):
    model = onnx.load(bundle / name, load_external_data=False)
    change(model)
    (bundle / name).write_bytes(model.SerializeToString())
    list_again(bundle, name)


def external(model, key, value, at=0):
    tensor = [weight for weight in model.graph.initializer if weight.external_data][at]
    next(entry for entry in tensor.external_data if entry.key == key).value = value


def loop(model):
    model.graph.node[0].op_type = "Loop"


def nested(model):
    attribute = model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.initializer.add(name="hidden")


def attribute_tensor(model):
    attribute = model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.external_data.add(key="location", value="elsewhere.bin")


def second_location(model):
    model.graph.initializer[-1].external_data.add(key="location", value="elsewhere.bin")


def location_without_data(model):
    model.graph.initializer[-1].ClearField("external_data")


def data_without_location(model):
    model.graph.initializer[-1].ClearField("data_location")


def test_every_graph_of_a_bundle_uses_its_own_file_alone(bundle):
    for graph in ("lower", "predictors", "upper"):
        used = check_weights(bundle / f"{graph}.onnx", bundle / weight_file(graph))
        model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
        lengths = [
            int(e.value) for t in model.graph.initializer for e in t.external_data if e.key == "length"
        ]
        assert used == sum(lengths)
        assert used > 0


@pytest.mark.parametrize("name", ["lower.onnx", "predictors.onnx", "upper.onnx"])
@pytest.mark.parametrize(
    "location", ["elsewhere.bin", "./model.safetensors", "../bundle/model.safetensors", "/dev/zero", ""]
)
def test_weights_of_another_file_are_refused(location, name, bundle):
    (bundle / "elsewhere.bin").write_bytes((bundle / "model.safetensors").read_bytes())
    edit(bundle, lambda model: external(model, "location", location, at=-1), name)
    with pytest.raises(
        BundleError, match=rf"graph does not load.*{name}'.*weights of .* in '{location}', not"
    ):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: external(model, "offset", str(2**40)), "end at byte .* which has"),
        (lambda model: external(model, "length", "9" * 18), "end at byte .* which has"),
        (lambda model: external(model, "length", "-1"), "external data of .* at '-1'"),
        (lambda model: external(model, "length", "9" * 30), "external data of"),
        (second_location, "external data of .*elsewhere.bin"),
        (location_without_data, "external data of"),
        (data_without_location, "external data of"),
        (loop, "operator 'Loop', which firp export never writes"),
        (
            lambda model: setattr(model.graph.node[0], "domain", "com.other"),
            "operator 'com.other.*never writes",
        ),
        (nested, "field 6 of a attribute"),
        (attribute_tensor, "field 5 of a attribute"),
        (lambda model: model.graph.sparse_initializer.add(), "field 15 of a graph"),
        (lambda model: model.functions.add(name="Gemm"), "field 25 of a model"),
    ],
)
def test_what_the_exporter_never_writes_is_refused(change, message, bundle):
    edit(bundle, change)
    with pytest.raises(BundleError, match=f"graph does not load.*{message}") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_second_graph_field_does_not_hide_the_first(bundle):
    """Protocol Buffers join a message that comes twice."""
    content = (bundle / "lower.onnx").read_bytes()
    extra = onnx.ModelProto()
    tensor = extra.graph.initializer.add(name="more", data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "elsewhere.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    for joined in (content + extra.SerializeToString(), extra.SerializeToString() + content):
        (bundle / "lower.onnx").write_bytes(joined)
        list_again(bundle, "lower.onnx")
        with pytest.raises(BundleError, match="weights of 'more' in 'elsewhere.bin'"):
            load_bundle(bundle)


def test_a_location_that_protocol_buffers_cut_to_external_is_refused(bundle):
    """An enumeration's number is cut to 32 bits: 2^32 + 1 is 1, "external"."""
    content = (bundle / "lower.onnx").read_bytes()
    assert content.count(b"\x70\x01") > 0  # field 14, value 1
    (bundle / "lower.onnx").write_bytes(content.replace(b"\x70\x01", b"\x70\x81\x80\x80\x80\x10"))
    with pytest.raises(BundleError, match="graph does not load"):
        check_weights(bundle / "lower.onnx", bundle / "model.safetensors")


def test_bytes_cut_or_turned_over_give_one_line_or_a_graph(bundle):
    content = (bundle / "upper.onnx").read_bytes()
    mutants = [content[:at] for at in range(0, len(content), 37)]
    mutants += [
        content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :] for at in range(0, len(content), 7)
    ]
    refused = 0
    for mutant in mutants:
        (bundle / "upper.onnx").write_bytes(mutant)
        try:
            check_weights(bundle / "upper.onnx", bundle / "model.safetensors")
        except BundleError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(mutants) / 3


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x0f", b"\x3b", b"\x80" * 12, b"\x12\x02\xff\xfe"]
)
def test_what_is_no_protocol_buffer_is_refused(content, bundle):
    (bundle / "upper.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="graph does not load"):
        check_weights(bundle / "upper.onnx", bundle / "model.safetensors")


def test_a_huge_graph_is_not_read(bundle):
    os.truncate(bundle / "upper.onnx", 3 << 30)
    with pytest.raises(BundleError, match="graph does not load.*3221225472 bytes"):
        check_weights(bundle / "upper.onnx", bundle / "model.safetensors")


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
    file = bundle / "firp.json"
    data = json.loads(file.read_text())
    del data["sha256"]
    data["files"]["x" * 5000] = {"size": 1, "sha256": ""}
    file.write_text(json.dumps({**data, "sha256": manifest_digest(data)}))
    with pytest.raises(BundleError, match="bad file name in bundle"):
        load_bundle(bundle)
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle("x" * 5000)


@pytest.mark.parametrize("path", [None, 3, "a\0b"])
def test_what_is_no_path_is_no_bundle(path):
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(path)


def test_the_builder_s_sum_of_a_file_that_is_no_graph_is_one_line(tmp_path):
    (tmp_path / "lower.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match="graph does not load"):
        graph_weight_bytes(tmp_path / "lower.onnx")
