"""What a calibration reads before it starts."""

import json
import shutil

from firp.calib.calibrate.request import CalibrationRequest, prepare
from firp.calib.training.options import TrainOptions
from firp.runtime.loop.text import load_tokenizer

OPTIONS = TrainOptions(minutes=None, steps=1, window=48)


def test_answers_end_where_chat_ends_them_and_texts_do_not(pytestconfig, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pytestconfig.rootpath / "tests" / "demo_model", model)
    token = load_tokenizer(model / "tokenizer.json").id_to_token(300)
    config = {"eos_token": token, "chat_template": "{{ messages[0].content }}"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "def add(a, b):"}]

    def ends(*prompts):
        return prepare(CalibrationRequest(model, tmp_path / "out", prompts=prompts, options=OPTIONS)).ends

    of_text = ends("def add(a, b):")
    assert 300 not in of_text
    assert ends(messages) == (*of_text, 300)
