"""Layers with a window read the last slots of their caches alone, and decode what they would decode from
all of them.
"""

import random

import numpy as np
import pytest
from support.family_models import save_family
from support.small_models import make_model, make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference
from firp.export.verify.tokens import plain_against_generate
from firp.runtime.engine import Engine
from firp.runtime.passes.in_place_cache import STEP, last_slots
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees

WINDOW = 7  # of the first and the last of three layers
TREES = {
    "tree": TreeConfig("dynamic", 6, 2),
    "chain": TreeConfig.chain(2, 1),
    "draft": TreeConfig("dynamic", 4, 0),
}
PROMPT = np.random.default_rng(0).integers(2, 60, 150).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("window") / "model", "cwm", max_position_embeddings=400)


@pytest.fixture(scope="module")
def engine(model):
    predictors = make_predictors(model.parent / "predictors", model, 2, 2)
    export_bundle(ExportOptions(model, model.parent / "bundle", predictors))
    with Engine.load(model.parent / "bundle", options=EngineOptions(max_batch=3)) as engine:
        yield engine


def test_slots_begin_at_a_step_and_hold_every_window():
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randrange(500) for _ in range(rng.randrange(1, 4))]
        rows, window = rng.randrange(1, 20), rng.randrange(2, 300)
        seen = last_slots(lengths, rows, window, 1024)
        assert seen.start % STEP == 0
        assert seen.start <= max(0, min(lengths) - window + 1) < seen.start + STEP
        assert max(lengths) + rows <= seen.stop < max(lengths) + rows + STEP
    assert last_slots([100], 2, 5, 110) == range(64, 110)


def next_logits(engine, spoil):
    """Logits after a text, some slabs of whose cache `spoil` has changed."""
    session = engine.session(200, rows=160)
    session.forward(PassPlan(chain(PROMPT)))
    session.commit(range(len(PROMPT)))
    spoil(session.batch.kv.slots[:, 0])  # [slabs, Hkv, S, Dh]
    return session.forward(PassPlan(chain([5, 6, 7]))).logits


def test_what_lies_before_a_window_is_not_read(engine):
    old = (len(PROMPT) - WINDOW + 1) // STEP * STEP
    assert old >= 2 * STEP

    def windowed(slots):
        slots[[0, 1, 4, 5], :, :old] = np.nan

    def all_seeing(slots):
        slots[2:4, :, :old] = np.nan

    def in_the_window(slots):
        slots[:2, :, len(PROMPT) - WINDOW + 2] = np.nan

    untouched = next_logits(engine, lambda slots: None)
    np.testing.assert_array_equal(next_logits(engine, windowed), untouched)
    assert np.isnan(next_logits(engine, all_seeing)).all()
    assert np.isnan(next_logits(engine, in_the_window)).any()


def test_long_texts_are_those_of_the_model_and_drafts_change_nothing(engine, model):
    reference = Reference(open_checkpoint(model), "float32")
    assert plain_against_generate("plain = generate", engine, reference, [PROMPT], "float32").passed
    (comparison,) = compare_trees(engine, [PROMPT], [SamplingParams(80)], {"tree": TREES["tree"]})
    assert comparison.differences == []


def test_integers_keep_their_bits(tmp_path):
    """A chain's rows are those of plain decoding, to the bit, whatever lies before their windows."""
    model = make_model(tmp_path / "model", "mistral_window")
    export_bundle(
        ExportOptions(
            model, tmp_path / "bundle", make_predictors(tmp_path / "predictors", model), quantize="int8"
        )
    )
    engine = Engine.load(tmp_path / "bundle", check_hashes=False)
    prompt = PROMPT[:60]
    params = SamplingParams(100, ignore_eos=True)
    tokens = engine.generate(prompt, params, plain=True).token_ids
    assert engine.generate(prompt, params, tree=TREES["chain"]).token_ids == tokens
    found = []
    for step in (1, 4):
        session = engine.session(200, rows=64)
        session.forward(PassPlan(chain(prompt), prompt=True))
        session.commit(range(len(prompt)))
        logits = []
        for start in range(0, 92, step):
            logits.append(session.forward(PassPlan(chain(tokens[start : start + step]))).logits.copy())
            session.commit(range(step))
        found.append(np.concatenate(logits))
    np.testing.assert_array_equal(*found)


def test_lanes_of_unlike_lengths_see_their_own_windows(engine):
    asked = [(PROMPT, 60), (PROMPT[:9], 60), (PROMPT[:70], 60), (PROMPT[20:], 30)]
    trees = [None, *TREES.values()]
    handles = [
        engine.submit(prompt, SamplingParams(count, ignore_eos=True), tree=tree, plain=tree is None)
        for (prompt, count), tree in zip(asked, trees, strict=True)
    ]
    for handle, (prompt, count) in zip(handles, asked, strict=True):
        request = engine.request(prompt, SamplingParams(count, ignore_eos=True))
        alone = [token for step in engine.steps(request, None) for token in step.tokens]
        assert handle.result(60).token_ids == alone
