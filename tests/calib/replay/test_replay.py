"""Replayed acceptance is decoded acceptance, and the trees made from it are the best of their kind."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from firp.calib.replay.drafters import replay_drafter
from firp.calib.replay.replay import Drafted, Recorded, accepted_ranks, rank, record, replay
from firp.calib.replay.scales import fit_scales
from firp.calib.replay.trees import (
    acceptance_by_rank,
    as_candidates,
    best_static_tree,
    candidates,
    firp_candidates,
)
from firp.calib.text.sequence import TokenSequence
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.export.sources.open import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree_config import TreeConfig

TREES = [
    *(TreeConfig("dynamic", 10, sources) for sources in (0, 1, 3, None)),
    TreeConfig("dynamic", 5, 2, depth=1),
    TreeConfig("chain", 3, 1, depth=2, least=0.02),
    TreeConfig.static([(0,), (1,), (0, 0), (2,), (0, 0, 0)], 2),
]


@pytest.fixture(scope="module")
def decoded(family_bundle):
    """A small model's engine, its torch twin, and what it decoded: params -> sequences."""
    model_dir, bundle = family_bundle("llama")
    engine = Engine.load(bundle)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 190, 12).tolist() for _ in range(6)]
    texts = {}
    for temperature in (0.0, 0.8):
        params = SamplingParams(60, temperature=temperature, seed=4, ignore_eos=True)
        written = [engine.generate(prompt, params, plain=True).token_ids for prompt in prompts]
        texts[params] = [
            TokenSequence(np.array([*a, *b]), len(a)) for a, b in zip(prompts, written, strict=True)
        ]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    frozen = FrozenModel(model, open_checkpoint(model_dir), 2)
    heads = FirpPredictors(3, 64)
    heads.load_state_dict(
        {"weight": load_file(bundle / "predictors.safetensors")["predictors.weight"].reshape(3, 64, 64)}
    )
    return engine, frozen, heads, texts


def random_correction(vocab_size: int) -> PathCorrection:
    rng = np.random.default_rng(5)
    tables = (rng.standard_normal((vocab_size, 4)).astype(np.float32) for _ in range(2))
    scales = (rng.uniform(0.5, 1.5, (2, 3)).astype(np.float32) for _ in range(2))
    return PathCorrection(*tables, *scales)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_replay_takes_the_steps_that_decoding_takes(decoded, corrected, monkeypatch):
    engine, frozen, heads, texts = decoded
    correction = random_correction(engine.model.vocab_size) if corrected else None
    monkeypatch.setattr(
        engine, "bundle", engine.bundle.__class__(**{**vars(engine.bundle), "correction": correction})
    )
    accepted = 0
    for params, sequences in texts.items():
        drafted = rank(record(frozen, heads, sequences), correction, params.temperature == 0)
        for tree in TREES:
            runs = [
                engine.generate(sequence.tokens[: sequence.prompt_tokens].tolist(), params, tree=tree).stats
                for sequence in sequences
            ]
            replayed = replay(drafted, tree)
            assert replayed.tokens == sum(run.decoded_tokens for run in runs)
            assert replayed.steps == sum(run.steps for run in runs), tree
            depth_of = itertools.zip_longest(*(run.accepted_by_depth for run in runs), fillvalue=0)
            assert replayed.accepted_by_depth == [sum(counts) for counts in depth_of]
            accepted += sum(replayed.accepted_by_depth)
    assert accepted > 50  # and there was something to accept


def drafted_text(seed: int, length: int = 400) -> list[Drafted]:
    """A made-up text whose tokens are often the first guesses."""
    rng = np.random.default_rng(seed)
    ids = np.stack([np.stack([rng.permutation(40)[:8] for _ in range(3)]) for _ in range(length)])
    tokens = np.empty(length, np.int64)
    tokens[:2] = 0
    for at in range(2, length):
        offset = rng.integers(0, min(3, at - 1))
        tokens[at] = ids[at - 2 - offset, offset, min(rng.geometric(0.6) - 1, 7)]
    logprobs = np.log(np.sort(rng.dirichlet(np.full(8, 0.4), (length, 3)))[..., ::-1] * 0.9 + 1e-4).astype(
        np.float32
    )
    guesses = {root: Guesses(ids[root - 1], logprobs[root - 1]) for root in range(1, length - 1)}
    return [
        Drafted(
            tokens.tolist(), 1, guesses, {root: independent(found) for root, found in guesses.items()}, {}
        )
    ]


def test_acceptance_by_rank_counts_children_of_accepted_parents():
    sequences = drafted_text(0)
    paths = accepted_ranks(sequences)
    shares = acceptance_by_rank(sequences, 3)
    reached = [path for path in paths if len(path) >= 1]
    assert shares[0, 0] == pytest.approx(sum(path[:1] == (0,) for path in paths) / len(paths))
    assert shares[1, 2] == pytest.approx(sum(path[1:2] == (2,) for path in reached) / len(reached))
    assert 0.2 < shares[0].sum() <= 1


def test_the_static_tree_accepts_more_than_others_of_its_size():
    sequences = drafted_text(1)
    best = best_static_tree(sequences, 3, 6)
    assert len(best) == 6
    assert {path[:-1] for path in best if len(path) > 1} <= set(best)
    others = (
        [(0,), (0, 0), (0, 0, 0), (1,), (2,), (3,)],
        [(rank,) for rank in range(6)],
        [(0,), (1,), (0, 0), (1, 0), (1, 1), (0, 1)],
    )
    rates = [replay(sequences, TreeConfig.static(paths)).tokens_per_step for paths in (best, *others)]
    assert rates[0] >= max(rates[1:])


def test_candidates_know_what_sources_and_depth_cost():
    sequences = drafted_text(2, 200)
    found = firp_candidates(sequences, 3)
    rate = {
        (tree.rows, tree.draft_sources, tree.depth): replayed for tree, replayed in found if not tree.least
    }
    assert rate[8, 0, None] == rate[8, None, None]
    assert rate[8, 1, None].tokens_per_step < rate[8, None, None].tokens_per_step
    assert rate[8, 1, None].undrafted > 10
    assert rate[8, None, None].undrafted == 0
    assert rate[8, None, 1].tokens_per_step <= 2
    for tree, replayed in found:
        tree.validate(3)
        assert replay(sequences, tree) == replayed
    written = as_candidates({"greedy": found, "text": firp_candidates(drafted_text(3, 200), 3)})
    assert [candidate.tree for candidate in written] == [tree for tree, _ in found]
    assert set(written[0].tokens_per_step) == {"greedy", "text"}
    assert written[-1].tokens_per_step["greedy"] == pytest.approx(found[-1][1].tokens_per_step, abs=1e-4)


def test_many_predictors_make_no_tree_that_no_pass_could_hold():
    for tree, _ in candidates([], 16):
        tree.validate(16)


def recorded_text(sharp: float, pairs: float) -> list[Recorded]:
    """Tokens drawn from scores that are `sharp` times as certain as recorded, and lean on token
    pairs by `pairs`.
    """
    rng = np.random.default_rng(0)
    length, trained = 3000, random_correction(40)
    ids = np.stack([np.stack([rng.permutation(40)[:16] for _ in range(3)]) for _ in range(length)])
    logprobs = np.log(rng.dirichlet(np.ones(16), (length, 3))).astype(np.float32)
    tokens = np.zeros(length, np.int64)
    for at in range(2, length):
        scores = logprobs[at - 2, 0] + pairs * (
            trained.following[ids[at - 2, 0]] @ trained.previous[tokens[at - 1]]
        )
        tokens[at] = rng.choice(ids[at - 2, 0], p=np.exp(scores * sharp) / np.exp(scores * sharp).sum())
    return [Recorded(TokenSequence(tokens, 1), ids, logprobs)]


def test_scales_are_those_under_which_the_text_is_likely():
    ones = random_correction(40)._replace(
        weight=np.ones((2, 3), np.float32), scale=np.ones((2, 3), np.float32)
    )
    fitted = fit_scales((recorded_text(1.5, 1.0), recorded_text(1.0, 0.0)), ones)
    assert fitted.scale[0, 0] == pytest.approx(1.5, abs=0.21)
    assert fitted.weight[0, 0] == pytest.approx(1.5, abs=0.21)
    assert fitted.scale[1, 0] == pytest.approx(1.0, abs=0.16)
    assert fitted.weight[1, 0] == 0
    assert (ones.scale == 1).all()


def test_candidates_hold_every_set_of_drafters():
    found = candidates(drafted_text(2, 120), 3)
    sets = {("firp",), ("lookup",), ("firp", "lookup")}
    for kind in ("dynamic", "chain"):  # a quantized bundle drafts chains
        assert {tree.drafters for tree, _ in found if tree.kind == kind} == sets
    assert all(1 <= replayed.mean_rows <= tree.rows for tree, replayed in found)


def test_a_loop_is_copied_whole_and_fresh_text_not_at_all():
    loop = Drafted([1, 2, 3, 4] * 10, 8, {}, {}, {})
    copied = replay_drafter([loop], TreeConfig.lookup(4), 0)
    assert copied.tokens == 31
    assert copied.steps == 8  # four tokens each
    assert copied.undrafted == 0
    fresh = replay_drafter([Drafted(list(range(20)), 8, {}, {}, {})], TreeConfig.lookup(4), 0)
    assert fresh.tokens_per_step == 1
    assert fresh.undrafted == 11
    assert fresh.steps == 11


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_the_runtime_s_own_drafter_replays_like_the_trees_alone(tree):
    sequences = drafted_text(4, 150)
    alone = replay(sequences, tree)
    replayed = replay_drafter(sequences, tree, 3)
    assert replayed.steps == alone.steps
    assert replayed.accepted_by_depth == alone.accepted_by_depth


@pytest.mark.parametrize("sources", [0, 2, None])
@pytest.mark.parametrize("drafters", [("firp", "lookup"), ("lookup",)])
def test_a_replay_with_lookup_takes_the_steps_that_decoding_takes(decoded, drafters, sources):
    engine, frozen, heads, texts = decoded
    sources = 0 if drafters == ("lookup",) else sources
    tree = TreeConfig("dynamic", 8, sources, drafters=drafters, least=0.02)
    for params, sequences in texts.items():
        greedy = params.temperature == 0
        replayed = replay_drafter(rank(record(frozen, heads, sequences), None, greedy), tree, 3)
        requests = [
            engine.request(sequence.tokens[: sequence.prompt_tokens].tolist(), params)
            for sequence in sequences
        ]
        steps = [step for request in requests for step in engine.steps(request, tree) if step.rows]
        assert replayed.steps == len(steps)
        assert replayed.tokens == sum(len(step.tokens) for step in steps)
