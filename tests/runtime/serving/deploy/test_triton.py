"""A Triton model: the repository that a command writes, and its code against a stand-in of what Triton
gives it.
"""

import importlib.util
import json
import re
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from support.fake_engine import FakeEngine

from firp.runtime.commands.triton import triton
from firp.runtime.engine import Engine
from firp.runtime.errors import EngineBusyError, FirpError
from firp.runtime.serving.deploy.triton_repository import write_repository

FINAL = 1


class Sender:
    """Keeps what is sent; `cancelled`: what the client did."""

    def __init__(self):
        self.sent = []
        self.cancelled = False
        self.final = threading.Event()

    def send(self, response, flags=0):
        assert not self.final.is_set()
        self.sent.append(response)
        if flags == FINAL:
            self.final.set()

    def is_cancelled(self):
        return self.cancelled


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


def request(**texts):
    sender = Sender()
    tensors = {name: Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()}
    return SimpleNamespace(tensors=tensors, get_response_sender=lambda: sender, sender=sender)


@pytest.fixture
def pb_utils(monkeypatch):
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = lambda message: message
    module.InferenceResponse = lambda tensors, error=None: SimpleNamespace(
        values={one.name: one.array.tolist() for one in tensors}, error=error
    )
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    module.get_input_tensor_by_name = lambda asked, name: asked.tensors.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    yield module
    sys.modules.pop("firp.runtime.serving.deploy.triton_model", None)


@pytest.fixture(scope="module")
def repository(demo_bundle, tmp_path_factory):
    models = tmp_path_factory.mktemp("triton") / "models"
    triton.main([str(demo_bundle), "-o", str(models), "--name", "demo"], standalone_mode=False)
    return models / "demo"


@pytest.fixture
def model(repository, pb_utils, monkeypatch):
    """The model as Triton makes it, with an engine that says what a test wants."""
    engine = FakeEngine()
    loaded = []
    monkeypatch.setattr(Engine, "load", lambda *given: loaded.append(given) or engine)
    spec = importlib.util.spec_from_file_location("model", repository / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    found = re.findall(
        r'key: "(\w+)" value \{ string_value: ("[^"]*") \}', (repository / "config.pbtxt").read_text()
    )
    parameters = {key: {"string_value": json.loads(value)} for key, value in found}
    made.initialize({"model_config": json.dumps({"parameters": parameters})})
    assert loaded == [(parameters["bundle"]["string_value"], "cpu")]
    return made, engine


def test_a_request_is_answered_a_response_a_step(model):
    served, _ = model
    asked = [request(prompt="x", parameters='{"max_new_tokens": 9, "temperature": 0.5}'), request(prompt="y")]
    assert served.execute(asked) is None
    for one in asked:
        assert one.sender.final.wait(5)
        assert [response.values["text"][0] for response in one.sender.sent] == [b"Hel", b"lo.", b""]
        assert [len(response.values["token_ids"]) for response in one.sender.sent] == [3, 3, 0]
        assert one.sender.sent[-1].values["finish_reason"] == [b"stop"]


def test_a_client_that_cancels_ends_its_request_within_a_step(model):
    served, engine = model
    engine.says = lambda params: ["a"] * 10_000
    asked = request(prompt="x")
    served.execute([asked])
    asked.sender.cancelled = True
    assert asked.sender.final.wait(5)
    assert asked.sender.sent[-1].values["finish_reason"] == [b"cancelled"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "no prompt"),
        ({"prompt": "x", "parameters": "{"}, "bad parameters"),
        ({"prompt": "x", "parameters": '{"heat": 1}'}, "bad parameters"),
        ({"prompt": "x", "parameters": '{"top_p": 2}'}, "bad top_p"),
    ],
)
def test_what_is_wrong_is_an_error_of_the_request_alone(texts, message, model):
    served, _ = model
    wrong, right = request(**texts), request(prompt="x")
    served.execute([wrong, right])
    assert wrong.sender.final.is_set()
    assert message in wrong.sender.sent[0].error
    assert right.sender.final.wait(5)
    assert right.sender.sent[-1].error is None


def test_an_engine_that_is_busy_or_dies_is_an_error(model):
    served, engine = model
    engine.busy = EngineBusyError("the queue is full")
    refused = request(prompt="x")
    served.execute([refused])
    assert "queue is full" in refused.sender.sent[0].error
    engine.busy, engine.error = None, EngineBusyError("dead")
    failed = request(prompt="x")
    served.execute([failed])
    assert failed.sender.final.wait(5)
    assert failed.sender.sent[-1].error == "dead"


def test_the_end_waits_for_what_runs(model):
    served, engine = model
    engine.pace_s = 30
    asked = request(prompt="x")
    served.execute([asked])
    began = time.monotonic()
    served.finalize()
    assert time.monotonic() - began < 5
    assert engine.closed
    assert asked.sender.final.is_set()


def test_a_repository_appears_whole_and_replaces_nothing(repository, demo_bundle, tmp_path):
    config = (repository / "config.pbtxt").read_text()
    assert "decoupled: true" in config
    assert str(demo_bundle.resolve()) in config
    models = repository.parent
    assert [path.name for path in models.iterdir()] == ["demo"]
    (tmp_path / "file").write_text("")
    for message, bundle, output, name in (
        ("output exists", demo_bundle, models, "demo"),
        ("bad model name", demo_bundle, models, "a/b"),
        ("cannot write", demo_bundle, tmp_path / "file", "demo"),
        ("not a bundle", tmp_path, models, "other"),
    ):
        with pytest.raises(FirpError, match=message):
            write_repository(bundle, output, name, "cpu")
    assert [path.name for path in models.iterdir()] == ["demo"]
