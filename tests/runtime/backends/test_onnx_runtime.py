"""Quantized bundles with the kernels of processors without VNNI, and with those of the others: one
file runs on both, whatever processor this is.
"""

import numpy as np
import pytest
from support.gguf_files import WIDE
from support.small_models import make_model, make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.quantize import decision
from firp.runtime.backends import onnx_runtime
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.precision import BLOCKS4, BLOCKS8, FINE_ROWS, ROW_FORMATS, ROWS
from firp.runtime.engine import Engine
from firp.runtime.machine import sums_int8_exactly
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig

TOKENS = [3, 14, 15, 92, 65, 35]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Format of the layers -> (engine of exact kernels, engine of fast ones), of one bundle."""
    root = tmp_path_factory.mktemp("processors")
    model = make_model(root / "model", "llama", changes=WIDE)
    predictors = make_predictors(root / "predictors", model)
    made = {}
    for form, method in ((ROWS, "int8"), (FINE_ROWS, "int8"), (BLOCKS8, "int8"), (BLOCKS4, "int4")):
        with pytest.MonkeyPatch.context() as patch:
            if form in (FINE_ROWS, BLOCKS8):
                patch.setattr(decision, "_WORST_ROWS", 0.0)
            if form == BLOCKS8:
                patch.setattr(decision, "limit", lambda blocks_error: 0.0)
            patch.setattr(onnx_runtime, "sums_int8_exactly", lambda: False)
            own = predictors if form == ROWS else None
            options = ExportOptions(model, root / form, own, quantize=method, quality_limit=1e9)
            export_bundle(options)
            exact = Engine.load(root / form)
            patch.setattr(onnx_runtime, "sums_int8_exactly", lambda: True)
            made[form] = exact, Engine.load(root / form)
    return made


def forward(engine):
    """Hidden states at the prediction layer, and logits, of one pass."""
    session = engine.session(16, 12)
    logits = session.forward(PassPlan(chain(TOKENS))).logits
    return session.hidden_states(len(TOKENS)).copy(), logits.copy()


@pytest.mark.parametrize("form", [ROWS, FINE_ROWS, BLOCKS8, BLOCKS4])
def test_a_bundle_has_the_same_bits_on_every_processor(engines, form):
    exact, fast = engines[form]
    linears = load_bundle(exact.bundle.path).manifest.quantization.linears
    assert {linears[f"layers.{index}.down_proj"].format for index in range(4)} == {form}
    hidden, logits = forward(exact)
    assert np.isfinite(logits).all()
    others = forward(fast)
    if sums_int8_exactly():
        np.testing.assert_array_equal(logits, others[1])
    if sums_int8_exactly() or form not in ROW_FORMATS:  # the head is rows always
        np.testing.assert_array_equal(hidden, others[0])


def test_drafts_over_the_whole_vocabulary_are_exact_without_vnni(engines):
    engine = engines[ROWS][0]
    params = SamplingParams(40, ignore_eos=True)
    plain = engine.generate(TOKENS, params, plain=True)
    drafted = engine.generate(TOKENS, params, tree=TreeConfig.chain(3))
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.drafted_steps > 0


def test_logits_and_guesses_of_one_product_do_not_depend_on_each_other(engines):
    tree = chain(TOKENS)
    plans = (PassPlan(tree, (1, 3), 3), PassPlan(tree), PassPlan(tree, (3,), 3, decode=(5,)))
    sessions = [engines[ROWS][0].session(16, 12) for _ in plans]
    both, plain, one = (session.forward(each) for session, each in zip(sessions, plans, strict=True))
    np.testing.assert_array_equal(both.logits, plain.logits)
    np.testing.assert_array_equal(one.logits, plain.logits[5:])
    np.testing.assert_array_equal(one.guesses.top_ids, both.guesses.top_ids[3:])
    np.testing.assert_array_equal(one.guesses.top_logprobs, both.guesses.top_logprobs[3:])
