"""A GGUF file is calibrated as the directory is that it was written from."""

import json

import pytest
from safetensors.torch import load_file
from support.gguf_files import tokenizer_metadata, write_gguf
from tokenizers import Tokenizer

from firp.calib.calibrate.request import CalibrationRequest, prepare
from firp.calib.calibrate.run import calibrate
from firp.calib.replay import evaluation
from firp.calib.report import report
from firp.calib.training.options import TrainOptions
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.bundle.format import load_bundle

OPTIONS = TrainOptions(
    minutes=None, steps=2, window=32, batch=1, anchors=8, correction_rank=4, own_tokens=64, num_predictors=2
)
LATENCY = LatencyTable("a machine", 6, 8, (256,), (1, 16), ((1.3, 3.0),), ((0.7, 1.8),), 0.1, 0.1, 0.3)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def demo(pytestconfig):
    return pytestconfig.rootpath / "tests" / "demo_model"


@pytest.fixture
def file(demo, tmp_path):
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    metadata = tokenizer_metadata(
        tokenizer, "gpt2", "gpt-2", bos_token_id=0, eos_token_id=0, add_bos_token=False
    )
    write_gguf(tmp_path / "demo.gguf", demo, "BF16", metadata | {"tokenizer.chat_template": TEMPLATE})
    return tmp_path / "demo.gguf"


def test_the_same_predictors_come_of_both(demo, file, tmp_path, pytestconfig, monkeypatch):
    monkeypatch.setattr(evaluation, "SEQUENCES", 2)
    monkeypatch.setattr(report, "draw_pictures", lambda findings: {})
    text = tmp_path / "text.txt"
    sources = sorted((pytestconfig.rootpath / "runtime").rglob("*.py"))[:4]
    text.write_text("".join(path.read_text() for path in sources))
    found = []
    for model, output in ((demo, tmp_path / "a"), (file, tmp_path / "b")):
        request = CalibrationRequest(model, output, (text,), ("def add(a, b):", [5, 6, 7]), OPTIONS, LATENCY)
        assert calibrate(request).model_name == model.name
        found.append(load_file(output / "predictors.safetensors")["predictors.weight"])
    assert found[0].equal(found[1])
    export_bundle(ExportOptions(file, tmp_path / "bundle", tmp_path / "b"))
    assert load_bundle(tmp_path / "bundle").manifest.source["model"] == "demo.gguf"


def test_messages_are_rendered_with_the_template_of_the_file(file, tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    prepared = prepare(CalibrationRequest(file, tmp_path / "out", (tmp_path / "chat.jsonl",), (), OPTIONS))
    tokenizer = prepared.checkpoint.tokenizer()
    text = "<user>hi<|endoftext|><assistant>ho<|endoftext|>"
    assert prepared.documents == [tokenizer.encode(text).ids]
    assert prepared.documents[0].count(0) == 2
