"""Every parameter is exact under drafting: what is forbidden, penalized or biased depends on a row's own
context along the tree.
"""

import numpy as np
import pytest
from support.decoding import steps_in

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.picking.processors import Counts
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import compare_trees, plain_run

TREES = {
    "dynamic": TreeConfig("dynamic", rows=12, draft_sources=None),
    "merged, draft pass": TreeConfig("dynamic", rows=10, draft_sources=0, drafters=DRAFTERS),
}
FIELDS = {
    "min_p": {"min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "logit_bias": {"logit_bias": {390: -100, 953: 3.5}},
    "allowed_token_ids": {"allowed_token_ids": range(200, 1000)},
    "banned_token_ids": {"banned_token_ids": range(200, 3000)},
    "min_tokens": {"min_tokens": 20, "logit_bias": {0: 20.0}, "ignore_eos": False},
    "stop_token_ids": {"stop_token_ids": range(200, 2000)},
    "logprobs": {"logprobs": 3},
    "all": {
        "min_p": 0.01, "repetition_penalty": 1.05, "presence_penalty": 0.2, "frequency_penalty": 0.1,
        "logit_bias": {200: 1.0}, "banned_token_ids": [330], "min_tokens": 9, "stop_token_ids": [13],
        "top_k": 50, "top_p": 0.95, "logprobs": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(family_bundle):
    return Engine.load(family_bundle("llama")[1])


@pytest.fixture(scope="module")
def texts(demo_engine, pytestconfig):
    file = pytestconfig.rootpath / "tests" / "demo_model" / "held_out_prompts.jsonl"
    return [demo_engine.encode(prompt.text)[:40] for prompt in read_prompts(file)[:2]]


def asked(fields, temperature):
    usual = {"max_new_tokens": 24, "ignore_eos": True, "temperature": temperature, "seed": 3}
    return SamplingParams(**(usual | fields))


@pytest.fixture(scope="module")
def without(demo_engine, texts):
    """What the model says when nothing is asked for, by temperature."""
    return {heat: plain_run(demo_engine, texts[0], asked({}, heat)).tokens for heat in (0.0, 0.9)}


@pytest.mark.parametrize("name", FIELDS)
def test_drafted_equals_plain_with_every_parameter(name, demo_engine, texts, without):
    trees = TREES if name == "all" else {"dynamic": TREES["dynamic"]}
    accepted, changed = 0, False
    for temperature, text in zip((0.0, 0.9), texts, strict=True):
        params = asked(FIELDS[name], temperature)
        for comparison in compare_trees(demo_engine, [text], [params], trees):
            assert comparison.unexcused == [], comparison.name
            accepted += comparison.decoded_tokens - comparison.steps
    for temperature in (0.0, 0.9)[: 2 if name == "min_p" else 1]:
        found = plain_run(demo_engine, texts[0], asked(FIELDS[name], temperature)).tokens
        changed |= found != without[temperature]
    assert changed == (name != "logprobs")  # every other one has an effect
    if name not in ("min_tokens", "stop_token_ids"):
        assert accepted > 1  # there were paths to go along


def test_a_forgotten_path_is_seen(engine, monkeypatch):
    """The test above can fail: with counts of decided tokens alone, drafts change tokens."""
    real = Counts.penalize

    def forgetful(counts, row, context, params):
        real(counts, row, context._replace(path=[]), params)

    monkeypatch.setattr(Counts, "penalize", forgetful)
    params = [asked({"frequency_penalty": 0.8, "allowed_token_ids": range(2, 6)}, 0.0)]
    (found,) = compare_trees(engine, prompts(), params, {"lookup": TreeConfig.lookup(8)})
    assert found.unexcused


def prompts():
    rng = np.random.default_rng(2)
    return [rng.integers(2, 190, size).tolist() for size in (3, 11)]


def test_end_tokens_wait_for_min_tokens_and_stop_ids_end_the_text(engine):
    bias = {1: 100.0}
    waiting = engine.generate(prompts()[0], SamplingParams(30, logit_bias=bias, min_tokens=7))
    assert waiting.token_ids.index(1) == 7
    assert waiting.finish_reason == "stop"
    free = engine.generate(prompts()[0], SamplingParams(30, ignore_eos=True)).token_ids
    stopped = engine.generate(prompts()[0], SamplingParams(30, stop_token_ids=[free[5]], ignore_eos=True))
    assert stopped.token_ids == free[: free.index(free[5]) + 1]
    assert stopped.finish_reason == "stop"


def log_softmax(row):
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


@pytest.mark.parametrize(
    ("name", "temperature"), [(None, 0.0), ("dynamic", 0.9), ("merged, draft pass", 0.0)]
)
def test_logprobs_are_those_of_the_model_whatever_is_asked(name, temperature, engine):
    """The bias moves picks and no logprob; one pass over prompt and output is the reference."""
    prompt = prompts()[1]
    params = SamplingParams(
        20, temperature, logit_bias={8: 3.0}, repetition_penalty=1.2, ignore_eos=True,
        logprobs=4, prompt_logprobs=2,
    )  # fmt: skip
    found = engine.generate(prompt, params, tree=TREES.get(name), plain=name is None)
    tokens = [*prompt, *found.token_ids]
    rows = reference_rows(engine, tokens)
    listed = [*found.prompt_logprobs, *found.logprobs]
    assert listed[0] is None
    assert [each.token_id for each in listed[1:]] == tokens[1:]
    for row, each, position in zip(rows, listed[1:], range(1, len(tokens)), strict=False):
        expected = log_softmax(row)
        assert each.logprob == pytest.approx(expected[each.token_id], abs=1e-4)
        assert len(each.top) == (2 if position < len(prompt) else 4)
        np.testing.assert_allclose(
            [logprob for _, logprob in each.top], np.sort(expected)[::-1][: len(each.top)], atol=1e-4
        )


def reference_rows(engine, tokens):
    """The logits after each token, from one pass."""
    session = engine.session(len(tokens), len(tokens) + 3)
    return session.forward(PassPlan(chain(tokens), prompt=True)).logits.copy()


def test_prompt_logprobs_come_in_pieces_and_from_a_cache_that_knows_the_prompt(engine):
    prompt = np.random.default_rng(5).integers(2, 190, 70).tolist()
    params = SamplingParams(2, prompt_logprobs=1)
    whole = next(steps_in(engine.session(80, 80), engine, prompt, params)).prompt_logprobs
    small = engine.session(80, 16)
    for _ in range(2):
        pieces = next(steps_in(small, engine, prompt, params, reuse=True)).prompt_logprobs
        assert len(pieces) == 70
        np.testing.assert_allclose(
            [each.logprob for each in pieces[1:]], [each.logprob for each in whole[1:]], atol=1e-4
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logit_bias": {193: 1.0}}, "bad logit_bias.*193.*0 to 192"),
        ({"allowed_token_ids": [4, 500]}, "bad allowed_token_ids.*500.*0 to 192"),
        ({"banned_token_ids": [193]}, "bad banned_token_ids.*193"),
        ({"stop_token_ids": [10**9]}, "bad stop_token_ids.*1000000000"),
    ],
)
def test_tokens_that_the_model_lacks_are_refused(fields, message, engine):
    with pytest.raises(FirpError, match=message):
        engine.stream([5], SamplingParams(**fields))


def test_nothing_left_to_pick_is_one_line(engine):
    params = SamplingParams(10, allowed_token_ids=[1], min_tokens=3)
    with pytest.raises(FirpError, match="no token may be picked.*position 1"):
        engine.generate([5], params)
