"""Files that are damaged, hostile or not supported: one line each, and nothing left behind."""

import re
import struct
import subprocess
import sys

import pytest
from support.gguf_files import WIDE, write_gguf
from support.small_models import make_model

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.runtime.errors import CheckpointError, FirpError

LLAMA = "llama."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("gguf") / "model", "llama", changes=WIDE)


@pytest.fixture(scope="module")
def content(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "model.gguf"
    write_gguf(path, model, "Q4_0")
    return path.read_bytes()


def refused(path):
    """The one line with which a file is refused, and nothing is written."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        export_bundle(ExportOptions(path, path.parent / "bundle"))
    assert sorted(path.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(tensors: int, values: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 62
CRAFTED = {
    "nothing": (b"", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + b"\0" * 100, "not a GGUF file.*begins with b'PK"),
    "four bytes": (b"GGUF", "truncated GGUF file"),
    "no counts": (b"GGUF\3\0\0\0\1", "truncated GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + b"\0" * 50, "unsupported GGUF version.*got 1 .*2 or 3"),
    "version 9": (b"GGUF" + struct.pack("<I", 9) + b"\0" * 50, "unsupported GGUF version.*got 9 "),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + b"\0" * 50, "big-endian GGUF file"),
    "very many values": (header(0, HUGE, b"\0" * 64), "truncated GGUF file"),
    "very many tensors": (header(HUGE, 0, b"\0" * 64), "truncated GGUF file"),
    "a very long key": (header(0, 1, struct.pack("<Q", HUGE) + b"\0" * 64), "truncated GGUF file"),
    "a very long text": (header(0, 1, entry("a", 8, struct.pack("<Q", HUGE))), "truncated GGUF file"),
    "a very long array": (header(0, 1, entry("a", 9, struct.pack("<IQ", 0, HUGE))), "an array of"),
    "a long array of texts": (header(0, 1, entry("a", 9, struct.pack("<IQ", 8, 1 << 21))), "truncated"),
    "a long array of numbers": (header(0, 1, entry("a", 9, struct.pack("<IQ", 10, 1 << 21))), "truncated"),
    "an array of arrays": (header(0, 1, entry("a", 9, struct.pack("<IQ", 9, 1))), "a value of type 9"),
    "an unknown value": (header(0, 1, entry("a", 77, b"\0" * 8)), "a value of type 77"),
    "a key twice": (header(0, 2, entry("a", 0, b"\0") * 2), "a twice"),
    "text that is none": (header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + b"\0" * 20), "not UTF-8"),
    "many dimensions": (header(1, 0, text("a") + struct.pack("<I", 1 << 30) + b"\0" * 40), "dimensions"),
    "a tensor twice": (header(2, 0, tensor("a", (1,), 0) * 2 + b"\0" * 64), "a twice"),
    "a huge tensor": (header(1, 0, tensor("a", (1 << 40, 1 << 40), 0)), "truncated GGUF file"),
    "tensors that overlap": (
        header(2, 0, tensor("a", (8,), 0) + tensor("b", (8,), 0, 16) + b"\0" * 128),
        "b overlaps",
    ),
    "half a block": (header(1, 0, tensor("a", (33,), 2) + b"\0" * 128), "blocks of 32"),
    "bad alignment": (
        header(0, 1, entry("general.alignment", 4, struct.pack("<I", 24))),
        "general.alignment 24",
    ),
    "Q2_K": (header(1, 0, tensor("a", (256,), 10) + b"\0" * 256), "unsupported type of a.*got Q2_K.*Q6_K"),
    "an unknown type": (
        header(1, 0, tensor("a", (256,), 99) + b"\0" * 256),
        "unsupported type of a.*type 99",
    ),
    "no architecture": (header(0, 0, b"\0" * 64), "unsupported architecture.*None"),
    "another architecture": (
        header(0, 1, entry("general.architecture", 8, text("gemma4"))),
        "unsupported architecture.*'gemma4'.*llama, qwen2, qwen3",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_each_crafted_file_has_its_line(name, tmp_path):
    crafted, message = CRAFTED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(crafted)
    line = refused(path)
    assert re.search(message, line)
    assert "model.gguf" in line


MEASURE = """
import resource, sys
from pathlib import Path
from firp.export.sources.gguf.file import read_gguf_file
from firp.runtime.errors import CheckpointError

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = used()
for path in sys.argv[1:]:
    try:
        read_gguf_file(Path(path))
    except CheckpointError:
        pass
print((used() - before) // 1024)
"""


def test_a_header_does_not_decide_about_memory(tmp_path):
    """All crafted files, in a process of their own, whose memory grows by the imports alone."""
    paths = [tmp_path / f"{index}.gguf" for index in range(len(CRAFTED))]
    for path, (crafted, _) in zip(paths, CRAFTED.values(), strict=True):
        path.write_bytes(crafted)
    command = [sys.executable, "-c", MEASURE, *paths]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 64  # MiB


@pytest.mark.parametrize("share", [0.0005, 0.001, 0.002, 0.5, 0.999999])
def test_a_file_that_ends_early_is_truncated(share, content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content[: int(len(content) * share)])
    assert "truncated GGUF file" in refused(tmp_path / "model.gguf")


def test_every_damaged_byte_of_a_header_gets_one_line_or_changes_nothing(content, tmp_path):
    """Every 13th byte, turned over: an error is a CheckpointError, whatever it hits."""
    path = tmp_path / "model.gguf"
    for position in range(0, 3000, 13):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({LLAMA + "embedding_length": None}, "unsupported llama.embedding_length.*got nothing"),
        ({LLAMA + "embedding_length": 128}, "wrong shape of"),
        ({LLAMA + "embedding_length": "256"}, "unsupported llama.embedding_length.*got '256'"),
        ({LLAMA + "block_count": 3}, r"does not use.*blk\.3"),
        ({LLAMA + "block_count": 5}, "tensors missing.*layers.4"),
        ({LLAMA + "block_count": 1 << 30}, "disagree.*got block_count 1073741824, expected at most 38"),
        ({LLAMA + "attention.head_count": 8}, "wrong shape of.*q_proj"),
        ({LLAMA + "attention.head_count_kv": 3}, "heads do not divide"),
        ({LLAMA + "attention.value_length": 32}, "unsupported llama.attention.value_length.*got 32"),
        ({LLAMA + "rope.dimension_count": 32}, "unsupported llama.rope.dimension_count.*got 32, expected 64"),
        (
            {LLAMA + "feed_forward_length": [256, 256, 256, 128]},
            "unsupported llama.feed_forward_length.*positive integer",
        ),
        ({LLAMA + "vocab_size": 200}, "disagree.*got vocab_size 200, expected 193"),
        ({LLAMA + "context_length": 8}, "bad max_position_embeddings"),
        ({LLAMA + "context_length": 2**31}, "bad max_position_embeddings.* at most 16777216"),
        ({LLAMA + "attention.layer_norm_rms_epsilon": 2.0}, "bad epsilon of norms"),
        ({LLAMA + "rope.freq_base": -1.0}, "rope"),
        ({LLAMA + "rope.scaling.type": "longrope"}, "unsupported llama.rope.scaling.type.*longrope"),
        ({LLAMA + "expert_count": 8}, "unsupported llama.expert_count.*got 8, expected 0"),
        ({LLAMA + "attention.scale": 0.5}, "unsupported llama.attention.scale.*no such key"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}, "got tokens 1, expected 193"),
        ({"split.count": 2}, "one part of a split model under another name"),
    ],
)
def test_metadata_that_cannot_be_right_is_refused(changes, message, model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, changes=changes)
    assert re.search(message, refused(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "changes",
    [
        {LLAMA + "expert_count": 0},
        {"split.count": 0, "split.no": 0},
        {LLAMA + "attention.head_count_kv": 2, LLAMA + "attention.key_length": None},
        {LLAMA + "vocab_size": None, LLAMA + "rope.dimension_count": None},
        {LLAMA + "rope.scaling.type": "none", LLAMA + "rope.scaling.finetuned": False},
    ],
)
def test_what_changes_nothing_is_accepted(changes, model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, changes=changes)
    assert open_checkpoint(tmp_path / "model.gguf").config == open_checkpoint(model).config


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (("token_embd.weight",), "no embedding"),
        (("blk.2.ffn_up.weight",), r"1 tensors missing.*model\.layers\.2\.mlp\.up_proj\.weight"),
    ],
)
def test_a_missing_tensor_is_named(drop, message, model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, drop=drop)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_missing_part_is_named(model, tmp_path):
    write_gguf(tmp_path / "split.gguf", model, split_bytes=1_000_000)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2
    parts[1].unlink()
    assert f"no '{parts[1].name}'" in refused(parts[0])


def test_a_part_of_another_model_is_refused(model, tmp_path):
    write_gguf(tmp_path / "split.gguf", model, split_bytes=1_000_000)
    parts = sorted(tmp_path.iterdir())
    parts[1].write_bytes(parts[2].read_bytes())
    assert "part of another model" in refused(parts[0])


def test_the_package_is_loaded_for_gguf_files_alone(model):
    code = "import sys; from firp.export.sources.open import open_checkpoint; open_checkpoint(sys.argv[1])"
    command = [sys.executable, "-c", f"import sys; sys.modules['gguf'] = None; {code}", model]
    subprocess.run(command, check=True)


def test_without_the_package_one_line_says_what_to_install(content, tmp_path, monkeypatch):
    monkeypatch.setattr("firp.runtime.extras.find_spec", lambda name: None if name == "gguf" else True)
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(FirpError, match="a GGUF file needs gguf .* pip install 'firp.export.'"):
        open_checkpoint(tmp_path / "model.gguf")
