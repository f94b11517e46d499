"""Bundles, whole and broken: each way to be bad has its own error, before any graph is loaded."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from support.hostile import edit_manifest

from firp.runtime.bundle.format import load_bundle, manifest_digest
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, FirpError


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def flip_byte(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_the_manifest_survives_the_round_trip(bundle):
    loaded = load_bundle(bundle)
    data = json.loads(json.dumps(to_json(loaded.manifest)))
    assert json.loads((bundle / "firp.json").read_text()) == {**data, "sha256": manifest_digest(data)}
    names = [tensor.name for tensor in loaded.manifest.graphs["lower"].inputs]
    assert names[:3] == ["input_ids", "position_ids", "attention_bias"]
    assert names[3:7] == ["write_at", "query_shape", "bias_repeats", "bias_shape"]
    assert names[7:] == ["past_key.0", "past_value.0", "past_key.1", "past_value.1"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda b: shutil.rmtree(b), "no such bundle"),
        (lambda b: (b / "firp.json").unlink(), "not a bundle"),
        (lambda b: (b / "firp.json").write_text("{"), "not JSON"),
        (lambda b: (b / "firp.json").write_text("[]"), "not a bundle manifest"),
        (
            lambda b: edit_manifest(b, lambda d: d.update(format_version=7)),
            "newer format.*version 7.*at most 6.*upgrade",
        ),
        (lambda b: edit_manifest(b, lambda d: d.update(format_version="1")), "not a bundle manifest"),
        (lambda b: edit_manifest(b, lambda d: d.update(format_version=0)), "not a bundle manifest"),
        (
            lambda b: edit_manifest(b, lambda d: [d.clear(), d.update(format_version=1)]),
            "bundle of an older format.*version 1.*expected 6. Fix: export the model again",
        ),
        (lambda b: edit_manifest(b, lambda d: d.update(speed=9)), "unknown key in firp.json.*speed"),
        (
            lambda b: edit_manifest(b, lambda d: d["model"].update(colour=1)),
            "unknown key in firp.json: model.*colour",
        ),
        (lambda b: edit_manifest(b, lambda d: d.pop("precision")), "missing key in firp.json.*precision"),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["attention"].update(head_dim="x")),
            "bad value.*head_dim.*'x'.*int",
        ),
        (lambda b: edit_manifest(b, lambda d: d["precision"].update(cache="int3")), "unknown dtype.*int3"),
        (
            lambda b: edit_manifest(b, lambda d: d["precision"].update(cache="float16")),
            "mixed precision.*weights float32, compute float32, cache float16",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["graphs"]["lower"].update(cache="paged")),
            "unknown cache contract.*paged.*expected in place or prefix",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["graphs"]["lower"].update(cache=None)),
            "does not declare the graphs",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["graphs"].pop("upper")),
            "does not declare the graphs of its model",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["graphs"]["lower"]["inputs"][0].update(name="x")),
            "does not declare the graphs",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["attention"].update(num_key_value_heads=4)),
            "does not declare the graphs",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["attention"].update(head_dim=0)),
            "bad model in.*attention.head_dim 0",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["mlp"].update(intermediate_size=-1)),
            "bad model in.*mlp.intermediate_size -1",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["layers"][2].update(window=0)),
            r"bad model in.*layers\[2\].window 0",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["layers"][2].update(window=7)),
            "does not declare the graphs",
        ),
        (
            lambda b: edit_manifest(
                b, lambda d: [d["model"]["layers"][index].update(window=index + 7) for index in (1, 2)]
            ),
            r"bad model in.*windows \[8, 9\].*one window, for some layers or all",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["layers"][2].update(rope="other")),
            "bad model in.*ropes .*other.* of layers",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["mlp"].update(activation="tan")),
            "bad model in.*mlp.activation tan, expected silu or",
        ),
        (
            lambda b: edit_manifest(b, lambda d: d["model"]["attention"].update(scale=0.0)),
            "bad model in.*attention.scale 0.0, expected positive",
        ),
        (
            lambda b: edit_manifest(
                b, lambda d: d["model"]["positions"]["ropes"]["default"]["frequencies"].append(1)
            ),
            "bad model in.*9 rope frequencies for 16 features",
        ),
        (lambda b: edit_manifest(b, lambda d: d["model"].update(hidden_size=-1)), "bad model in"),
        (
            lambda b: edit_manifest(
                b,
                lambda d: d["model"].update(
                    layers=[{"window": None, "rope": None, "sparse": False}] * 10_000
                ),
            ),
            "bad model in.*10000 layers",
        ),
        (lambda b: edit_manifest(b, lambda d: d.update(prediction_layer=4)), "bad split"),
        (lambda b: edit_manifest(b, lambda d: d.update(num_predictors=-1)), "bad split"),
        (lambda b: edit_manifest(b, lambda d: d["files"].pop("upper.onnx")), "lists no upper.onnx"),
        (
            lambda b: (b / "firp.json").write_text((b / "firp.json").read_text().replace("1e-06", "2e-06")),
            "corrupted firp.json",
        ),
        (lambda b: edit_manifest(b, lambda d: d["files"].pop("tree.json")), "lists no tree.json"),
        (
            lambda b: edit_manifest(b, lambda d: d["files"].update({"../x": d["files"]["tree.json"]})),
            "outside the bundle",
        ),
        (lambda b: (b / "upper.onnx").unlink(), "missing file in bundle.*upper.onnx"),
        (lambda b: (b / "model.safetensors").write_bytes(b"short"), "wrong file size in bundle.*5 bytes"),
        (lambda b: flip_byte(b / "model.safetensors", 9000), "corrupted file in bundle.*model.safetensors"),
        (lambda b: flip_byte(b / "lower.onnx", 200), "corrupted file in bundle.*lower.onnx"),
        (lambda b: flip_byte(b / "tree.json", 10), "corrupted file in bundle.*tree.json"),
    ],
)
def test_each_broken_bundle_has_its_message(bundle, break_it, message, monkeypatch):
    def no_session(*_, **__):
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr("onnxruntime.InferenceSession", no_session)
    break_it(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        Engine.load(bundle)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_graph_that_is_not_the_declared_one_is_refused(bundle):
    shutil.copyfile(bundle / "upper.onnx", bundle / "lower.onnx")
    content = (bundle / "lower.onnx").read_bytes()

    def rehash(data):
        data["files"]["lower.onnx"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_manifest(bundle, rehash)
    with pytest.raises(BundleError, match="not the graph that firp export writes"):
        Engine.load(bundle)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "[]", "bad eos_token_id"),
        ("generation_config.json", '{"eos_token_id": 500}', r"bad eos_token_id.*500.*\[0, 193\)"),
        ("generation_config.json", "[" * 100_000, "not JSON"),
        ("tree.json", '{"kind": "dynamic", "rows": 4, "width": 2}', "unknown key in tree.json.*width"),
        ("tree.json", '{"kind": "dynamic", "rows": 4.5}', "bad value at tree.json: rows"),
        ("tree.json", '{"kind": "dynamic", "rows": 4000}', "tree too large"),
    ],
)
def test_edited_parts_are_checked_too(bundle, name, content, message):
    (bundle / name).write_text(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    edit_manifest(bundle, lambda data: data["files"].update({name: entry}))
    with pytest.raises(FirpError, match=message):
        load_bundle(bundle)


def test_a_graph_that_does_not_parse_is_refused_without_hashes(bundle):
    file = bundle / "lower.onnx"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(BundleError, match="not the graph that firp export writes"):
        Engine.load(bundle, check_hashes=False)


def test_bfloat16_is_refused_by_name_on_the_cpu(family_bundle, tmp_path):
    from firp.export.bundle.writer import ExportOptions, export_bundle

    model, _ = family_bundle("llama")
    manifest = export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="bfloat16"))
    assert manifest.precision.compute == "bfloat16"
    assert manifest.verification is None
    with pytest.raises(FirpError, match="no CPU kernels for bfloat16"):
        Engine.load(tmp_path / "bundle")


def test_manifest_is_immutable(bundle):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_bundle(bundle).manifest.precision = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(source={}), "firp.json: source: model"),
        (lambda d: d["source"].pop("fingerprint"), "source: fingerprint"),
        (lambda d: d["source"].update(predictors=None), "source: predictors: held_out.*None"),
        (lambda d: d["source"]["predictors"].update(held_out=[]), r"held_out \| got \[\]"),
        (lambda d: d["source"]["predictors"]["held_out"].update(top1=0.5), "held_out: top1.*0.5.*list"),
        (lambda d: d.update(written_by={}), "written_by: firp"),
        (lambda d: d.update(verification={"passed": True}), "verification: checks"),
    ],
)
def test_what_is_only_shown_is_checked_before_it_is_shown(change, message, bundle):
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)
