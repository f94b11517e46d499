"""The anchor: drafted decoding gives the tokens of plain decoding, whatever the tree, the sources
and the sampling.
"""

import itertools

import numpy as np
import pytest
from support.decoding import all_tokens_in, steps_in

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.drafters.guard import Guard
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes import batch as batch_module
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import Comparison, compare, compare_trees, first_difference, plain_run

PROMPTS = "tests/demo_model/held_out_prompts.jsonl"

TREES = {
    "chain": lambda m: TreeConfig.chain(3, m),
    "static": lambda m: TreeConfig.static([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)], m),
    "dynamic": lambda m: TreeConfig("dynamic", rows=12, draft_sources=m),
    "shallow": lambda m: TreeConfig("dynamic", rows=5, draft_sources=m, depth=2),
}
SOURCES = (0, 1, 2, None)
OTHERS = {
    "lookup": TreeConfig.lookup(rows=8),
    "lookup, sure drafts": TreeConfig.lookup(rows=8, least=0.2),
    "sure drafts": TreeConfig("dynamic", rows=12, draft_sources=2, least=0.05),
    "merged, draft pass": TreeConfig("dynamic", rows=12, draft_sources=0, drafters=DRAFTERS),
    "merged": TreeConfig("dynamic", rows=12, draft_sources=2, drafters=DRAFTERS, least=0.02),
}
PARAMS = [
    SamplingParams(40, ignore_eos=True),
    SamplingParams(40, temperature=0.8, top_p=0.95, seed=1, ignore_eos=True),
    SamplingParams(40, temperature=1.2, top_k=5, seed=2),
]


def all_trees():
    firp = {f"{kind}, M={m}": make(m) for (kind, make), m in itertools.product(TREES.items(), SOURCES)}
    return firp | OTHERS


def random_prompts(engine, count):
    rng = np.random.default_rng(0)
    return [rng.integers(2, engine.model.vocab_size, rng.integers(1, 20)).tolist() for _ in range(count)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "llama3_rope"])
def test_drafted_equals_plain_on_random_models(family, family_bundle):
    engine = Engine.load(family_bundle(family)[1])
    trees = all_trees()
    for comparison in compare_trees(engine, random_prompts(engine, 4), PARAMS, trees):
        assert comparison.differences == [], comparison.name
        assert comparison.tokens > 300


def test_drafted_equals_plain_on_the_demo_model(demo_engine, pytestconfig):
    prompts = read_prompts(pytestconfig.rootpath / PROMPTS)[:4]
    encoded = [demo_engine.encode(prompt.text) for prompt in prompts]
    params = [SamplingParams(48), SamplingParams(48, temperature=0.8, top_p=0.95, seed=5)]
    trees = all_trees()
    comparisons = {c.name: c for c in compare_trees(demo_engine, encoded, params, trees)}
    for comparison in comparisons.values():
        assert comparison.unexcused == [], comparison.name
    assert comparisons["dynamic, M=None"].tokens_per_step > 1.2  # and the drafts are of use


GUARDED = ("dynamic, M=None", "dynamic, M=0", "lookup", "merged")


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("params", [SamplingParams(64), SamplingParams(64, temperature=0.8, seed=5)])
def test_drafts_that_come_and_go_give_the_tokens_of_plain_decoding(
    name, params, demo_engine, pytestconfig, monkeypatch
):
    """A coin decides for the guard."""
    coin = np.random.default_rng(0)
    monkeypatch.setattr(Guard, "drafts", property(lambda guard: coin.random() < 0.6))
    monkeypatch.setattr(Engine, "tree", all_trees()[name])  # as if it had been tuned
    plain_steps = drafted_steps = 0
    for index, prompt in enumerate(read_prompts(pytestconfig.rootpath / PROMPTS)[:3]):
        plain = plain_run(demo_engine, prompt.text, params)
        run = demo_engine.generate(prompt.text, params)
        difference = first_difference(index, plain, run.token_ids, params, "float32")
        assert difference is None or difference.near_tie
        drafted_steps += run.stats.drafted_steps
        plain_steps += run.stats.steps - run.stats.drafted_steps
    assert min(plain_steps, drafted_steps) > 10


def test_only_the_engine_s_own_choice_is_guarded(demo_engine, monkeypatch):
    """A tree that is asked for drafts in every step, so that it can be measured."""
    monkeypatch.setattr(Guard, "drafts", False)
    noted, observe = [], FirpDrafter.observe
    monkeypatch.setattr(FirpDrafter, "observe", lambda *note: (noted.append(note), observe(*note)))
    params = SamplingParams(20, ignore_eos=True)
    own = demo_engine.generate("def add(a, b):", params)
    assert (own.stats.steps, own.stats.drafted_steps) == (19, 0)
    assert len(noted) == 20  # plain passes too, and the prompt's
    given = demo_engine.generate("def add(a, b):", params, tree=demo_engine.tree)
    assert given.stats.drafted_steps > 0
    assert given.token_ids == own.token_ids


@pytest.mark.parametrize("params", PARAMS)
def test_a_wrong_mask_is_seen_and_not_excused_as_near_ties(params, family_bundle, monkeypatch):
    """The tests above can fail: with siblings visible to each other, drafted decoding leaves plain
    decoding.
    """
    engine = Engine.load(family_bundle("llama")[1])
    prompts = random_prompts(engine, 8)
    plain = [plain_run(engine, prompt, params) for prompt in prompts]
    real = batch_module.layout

    def leaky(*arguments):
        rows = real(*arguments)
        return rows._replace(visible=np.tril(np.ones_like(rows.visible)))

    monkeypatch.setattr(batch_module, "layout", leaky)
    comparison = Comparison("leaky")
    for index, prompt in enumerate(prompts):
        compare(comparison, engine, index, prompt, params, TREES["dynamic"](None), plain[index])
    assert len(comparison.unexcused) > 0.8 * len(comparison.differences) > 2


def test_a_run_that_ends_early_is_never_excused(family_bundle, monkeypatch):
    engine = Engine.load(family_bundle("llama")[1])
    (prompt,) = random_prompts(engine, 1)
    plain = plain_run(engine, prompt, PARAMS[0])
    plain = plain._replace(margins=[0.0] * len(plain.margins))
    steps = engine.steps
    monkeypatch.setattr(engine, "steps", lambda *arguments: list(steps(*arguments))[:-2])
    comparison = Comparison("short")
    compare(comparison, engine, 0, prompt, PARAMS[0], TREES["chain"](1), plain)
    assert len(comparison.unexcused) == 1


@pytest.mark.parametrize(("capacity", "rows"), [(200, 20), (64, 64), (45, 16)])
def test_a_small_session_gives_the_same_tokens_as_far_as_it_reaches(capacity, rows, family_bundle):
    engine = Engine.load(family_bundle("mistral_window")[1])
    prompt = np.random.default_rng(3).integers(2, 190, 40).tolist()
    expected = engine.generate(prompt, PARAMS[0]).token_ids
    session = engine.session(capacity, rows)
    for tree in (None, TreeConfig("dynamic", 4, 4), TreeConfig.lookup(4)):
        tokens = all_tokens_in(session, engine, prompt, PARAMS[0], tree)
        assert tokens == expected[: capacity + 1 - len(prompt)]


def test_a_tree_too_large_for_the_session_is_an_error(demo_engine):
    tree = TreeConfig("dynamic", 12, None)
    stream = steps_in(demo_engine.session(100, 16), demo_engine, [5, 6], SamplingParams(40), tree)
    with pytest.raises(FirpError, match="pass larger than the session"):
        list(stream)


def test_a_prompt_in_several_passes_gives_the_same_tokens(family_bundle):
    engine = Engine.load(family_bundle("mistral_window")[1])
    prompt = np.random.default_rng(1).integers(2, 190, 70).tolist()
    whole = engine.generate(prompt, PARAMS[0])
    small = engine.session(200, rows=19)
    assert small.prefill_rows == 16
    for tree in (None, TreeConfig("dynamic", 4, 4), TreeConfig("dynamic", 8, 0)):
        assert all_tokens_in(small, engine, prompt, PARAMS[0], tree) == whole.token_ids


def test_decoding_to_the_end_of_the_context_ends_with_length(family_bundle):
    engine = Engine.load(family_bundle("llama")[1])
    context = engine.model.max_position_embeddings
    params = SamplingParams(10_000, ignore_eos=True)
    for length in (context - 1, context - 2, context - 9, 5):
        prompt = np.random.default_rng(length).integers(2, 190, length).tolist()
        plain = engine.generate(prompt, params, plain=True)
        assert len(plain.token_ids) == context - length
        assert plain.finish_reason == "length"
        for make in TREES.values():
            drafted = engine.generate(prompt, params, tree=make(None))
            assert drafted.token_ids == plain.token_ids
            assert drafted.finish_reason == "length"
