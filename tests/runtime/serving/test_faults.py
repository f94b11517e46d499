"""What goes wrong below a server: its clients are told, and nobody waits for what will not come. The
engine is a small one, and real.
"""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from support.http_server import complete, error, events, serving

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.drafters.interface import Proposal
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.scheduler import Scheduler
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.serving.app import build_app
from firp.runtime.serving.metrics import Metrics
from firp.runtime.trees.tree import DraftTree
from firp.runtime.trees.tree_config import TreeConfig

POISON = 77  # a token whose embedding is no number
ASKED = {"temperature": 0, "return_token_ids": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def bundle(family_bundle, tmp_path_factory):
    """A model whose logits are no numbers where a text has the token POISON."""
    folder = shutil.copytree(family_bundle("qwen3")[1], tmp_path_factory.mktemp("faults") / "qwen3")
    with (folder / "model.safetensors").open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(size))["embed_tokens.weight"]
        row = np.full(tensor["shape"][1], np.nan, np.float32).tobytes()
        file.seek(8 + size + tensor["data_offsets"][0] + POISON * len(row))
        file.write(row)
    return folder


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def engine(bundle, metrics):
    options = EngineOptions(max_batch=3)
    with Engine.load(bundle, threads=1, check_hashes=False, options=options, observer=metrics) as loaded:
        yield loaded


@pytest.fixture
def client(engine, metrics):
    app = build_app(engine, metrics=metrics)
    with serving(app) as url, httpx2.Client(base_url=url, timeout=30) as made:
        yield made


def token_ids(response):
    return [
        token
        for one in events(response)
        for choice in one["choices"]
        for token in choice.get("token_ids", [])
    ]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_poisoned_request_fails_alone(temperature, client, engine):
    prompts = ([5, 6, 7], [8, 9, POISON, 10], [11, 12])
    params = SamplingParams(40, temperature=temperature, seed=3, ignore_eos=True)
    expected = [engine.generate(prompts[place], params, plain=True).token_ids for place in (0, 2)]
    assert not any(POISON in ids for ids in expected)

    def ask(prompt):
        asked = {**ASKED, "temperature": temperature, "seed": 3, "max_tokens": 40}
        return complete(client, **asked, prompt=prompt, stream=True)

    with ThreadPoolExecutor(3) as clients:
        first, poisoned, last = clients.map(ask, prompts)
    assert [token_ids(first), token_ids(last)] == expected
    assert events(poisoned)[-1]["error"]["code"] == "decoding_failed"
    assert "not finite" in events(poisoned)[-1]["error"]["message"]
    whole = error(complete(client, **ASKED, prompt=prompts[1]), 500)
    assert whole["code"] == "decoding_failed"
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_poisoned_draft_costs_its_pass_and_no_token(temperature, engine, monkeypatch):
    params = SamplingParams(20, temperature=temperature, seed=3, ignore_eos=True)
    prompts, tree = ([5, 6, 7], [11, 12]), TreeConfig("dynamic", 2, 0)
    expected = [engine.generate(prompt, params, plain=True).token_ids for prompt in prompts]
    drafted = []

    def propose(self, sequence, session, max_depth):
        drafted.append(max_depth)
        return Proposal(DraftTree([sequence.root, POISON], [-1, 0], [0, 1], [1.0, 0.9], ["", "firp"]))

    monkeypatch.setattr(FirpDrafter, "propose", propose)
    alone = [
        token for step in engine.steps(engine.request(prompts[0], params), tree) for token in step.tokens
    ]
    assert alone == expected[0]
    handles = [engine.submit(prompt, params, tree=tree) for prompt in prompts]
    assert [handle.result(30).token_ids for handle in handles] == expected
    assert len(drafted) == 3  # once a request, of which nothing drafts from then on


def test_when_the_engines_thread_dies_every_stream_ends_and_nothing_is_taken(client, engine, monkeypatch):
    step, dies = Scheduler.step, threading.Event()

    def dying(self):
        if dies.is_set():
            raise MemoryError("no room for a step")
        time.sleep(0.005)  # so that requests run for a second
        step(self)

    monkeypatch.setattr(Scheduler, "step", dying)
    streaming = threading.Barrier(3)

    def stream():
        asked = {**ASKED, "prompt": [5, 6], "max_tokens": 200, "stream": True}
        with client.stream("POST", "/v1/completions", json=asked) as response:
            lines = response.iter_lines()
            read = [next(lines)]
            streaming.wait(30)
            read += [line for line in lines if line]
        assert read.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in read]

    with ThreadPoolExecutor(3) as clients:
        streams = [clients.submit(stream) for _ in range(2)]
        streaming.wait(30)
        whole = clients.submit(complete, client, **ASKED, prompt=[5, 6], max_tokens=200)
        while engine.stats().submitted < 3:
            time.sleep(0.01)
        dies.set()
    assert error(whole.result(), 503)["code"] == "engine_closed"
    for one in streams:
        *tokens, last = one.result()
        assert tokens
        assert last["error"]["code"] == "engine_closed"
        assert "MemoryError: no room for a step" in last["error"]["message"]
    assert client.get("/healthz").status_code == 503
    assert error(complete(client, **ASKED, prompt=[5]), 503)["code"] == "engine_closed"
    assert error(complete(client, **ASKED, prompt=[5], stream=True), 503)["code"] == "engine_closed"
    told = client.get("/metrics").text
    for gauge in ("firp_requests_active", "firp_requests_waiting", "firp_cache_bytes"):
        assert f"{gauge} 0" in told
    assert "firp_requests_submitted_total 3" in told
    assert 'firp_requests_total{reason="error"} 3' in told
