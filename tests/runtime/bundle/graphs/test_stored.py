"""Weights lie where their file says, in the types and shapes of the model, or the bundle is refused."""

import json
import shutil

import pytest
from support.hostile import edit_manifest, list_again

from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import BundleError

NAME = "layers.1.o_proj.weight"


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def edit_header(bundle, change, name="model.safetensors"):
    content = (bundle / name).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header = json.dumps(change(header) or header).encode()
    header += b" " * (end - 8 - len(header))
    (bundle / name).write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    list_again(bundle, name)


def entry(**fields):
    return lambda header: header[NAME].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop(NAME) and None, f"weights of another model.*no '{NAME}'"),
        (lambda header: header.update(extra=header[NAME]), "weights of another model.*also 'extra'"),
        (entry(dtype="F16"), f"{NAME} float16 .*expected float32"),
        (entry(dtype=[]), f"{NAME} None .*expected float32"),
        (entry(shape=[64, 63]), r"expected float32 \[64, 64\]"),
        (entry(shape=[-64, -64]), r"expected float32 \[64, 64\]"),
        (entry(shape=[64.0, 64]), r"expected float32 \[64, 64\]"),
        (entry(shape=[2**31, 2**31]), r"expected float32 \[64, 64\]"),
        (entry(data_offsets=[0, 3]), f"{NAME} .*at bytes 0 to 3"),
        (entry(data_offsets=[0, 1, 2]), f"{NAME} .*at bytes 0 to -1"),
        (entry(data_offsets=[2**40, 2**40 + 64 * 64 * 4]), "weights end outside their file.*which has"),
        (entry(data_offsets=[-4, 64 * 64 * 4 - 4]), "weights end outside their file"),
        (lambda header: {**header, NAME: 3}, f"{NAME} None"),
        (lambda header: [1], r"not a safetensors file.*\[1\]"),
        (lambda header: {"x" * 4000: header[NAME], **header}, "also 'xxxx"),
    ],
)
def test_a_header_that_is_not_the_model_s_is_one_line(change, message, bundle):
    edit_header(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(bundle)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\2" + bytes(7) + b"{]" + bytes(100)])
def test_what_is_no_safetensors_file_is_one_line(content, bundle):
    (bundle / "predictors.safetensors").write_bytes(content)
    list_again(bundle, "predictors.safetensors")
    with pytest.raises(BundleError, match="not a safetensors file.*predictors"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.update(vocab_size=2**31 - 1), r"embed_tokens.weight"),
        (
            lambda model: model.update(max_position_embeddings=2**31 - 1),
            r"rope.default.cos .*2147483647",
        ),
        (lambda model: model["mlp"].update(intermediate_size=111), r"gate_up_proj.weight"),
        (lambda model: model.update(tie_word_embeddings=False), "no 'lm_head.weight'"),
        (lambda model: model["biases"].append("qkv_proj"), "no 'layers.0.qkv_proj.bias'"),
    ],
)
def test_a_manifest_whose_weights_are_others_is_one_line(change, message, bundle):
    """What the manifest declares is made to fit, as its author would."""

    def declare(data):
        change(data["model"])
        text = json.dumps(data["graphs"])
        data["graphs"] = json.loads(text.replace(", 193]", f", {data['model']['vocab_size']}]"))

    edit_manifest(bundle, declare)
    with pytest.raises(BundleError, match=f"weights of another model.*{message}"):
        load_bundle(bundle)
