"""Requests of every kind in one batch: each gets the tokens that it gets alone, plainly."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.chat_bundles import add_chat, byte_tokenizer

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.structured import StructuredOutput
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig

SCHEMA = {"type": "object", "required": ["key"], "properties": {"key": {"enum": ["abc", "abd"]}}}
TREE = TreeConfig("dynamic", rows=8, draft_sources=2, drafters=DRAFTERS)
MIXED = [
    SamplingParams(40, repetition_penalty=1.2, frequency_penalty=0.5, ignore_eos=True),
    SamplingParams(60, 1.1, seed=1, structured=StructuredOutput(json_schema=SCHEMA)),
    SamplingParams(30, logprobs=3, prompt_logprobs=2, ignore_eos=True),
    SamplingParams(40, 0.9, seed=2, min_p=0.1, logit_bias={9: 4.0}, banned_token_ids=[5, 6]),
    SamplingParams(50, structured=StructuredOutput(regex="[ab]{2,20}-[0-9]+x"), presence_penalty=1.0),
    SamplingParams(40, 0.7, seed=3, allowed_token_ids=range(2, 9), stop_token_ids=[4], min_tokens=6),
    SamplingParams(40),
    SamplingParams(60, 0.8, structured=StructuredOutput(choice=["one of them", "another"]), logprobs=0),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(family_bundle, tmp_path_factory):
    target = tmp_path_factory.mktemp("batches") / "bundle"
    with Engine.load(add_chat(family_bundle("llama")[1], target, tokenizer=byte_tokenizer())) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(engine):
    """Each request by itself, one token a pass."""
    return [engine.generate(prompt(i), params, plain=True) for i, params in enumerate(MIXED)]


def prompt(index):
    return np.random.default_rng(index).integers(2, 190, 3 + 7 * index).tolist()


@pytest.mark.parametrize("tree", [None, TREE], ids=["the engine's own", "every step"])
def test_a_batch_of_different_requests(tree, engine, alone):
    handles = [engine.submit(prompt(i), params, tree=tree) for i, params in enumerate(MIXED)]
    for handle, params, right in zip(handles, MIXED, alone, strict=True):
        found = handle.result(timeout=60)
        assert (found.token_ids, found.text, found.finish_reason) == (
            right.token_ids,
            right.text,
            right.finish_reason,
        )
        for ours, theirs in (
            (found.logprobs, right.logprobs),
            (found.prompt_logprobs, right.prompt_logprobs),
        ):
            assert (ours is None) == (theirs is None)
            known = [(a.logprob, b.logprob) for a, b in zip(ours or [], theirs or [], strict=True) if a]
            assert all(abs(a - b) < 1e-4 for a, b in known)
        assert len(found.logprobs or []) == (0 if params.logprobs is None else len(found.token_ids))
    assert json.loads(alone[1].text)["key"] in ("abc", "abd")


def test_a_request_that_may_pick_nothing_fails_by_itself(engine, alone):
    impossible = SamplingParams(10, allowed_token_ids=[1], min_tokens=3)
    broken = engine.submit(prompt(0), impossible)
    whole = engine.submit(prompt(0), MIXED[0])
    with pytest.raises(FirpError, match="no token may be picked"):
        broken.result(timeout=60)
    assert whole.result(timeout=60).token_ids == alone[0].token_ids
    assert engine.healthy


def test_samples_are_those_of_their_seeds(engine):
    params = replace(MIXED[1], seed=11)
    handles = engine.submit_samples(prompt(1), params, 3)
    found = [handle.result(timeout=60).token_ids for handle in handles]
    assert found == [
        engine.generate(prompt(1), replace(params, seed=11 + i), plain=True).token_ids for i in range(3)
    ]
