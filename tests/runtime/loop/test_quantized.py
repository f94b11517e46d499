"""A bundle of int8 rows: the rows of a chain have the bits of plain decoding, whatever rides along,
so drafts change no token and no near tie is excused.
"""

from dataclasses import replace

import numpy as np
import pytest
from support.chat_bundles import add_chat, byte_tokenizer
from support.small_models import make_model, make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.bundle.calibration import Calibration, Candidate
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.structured import StructuredOutput
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import CHAIN, DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import compare_trees
from firp.runtime.tuning.tune import tune

PARAMS = [
    SamplingParams(60, ignore_eos=True),
    SamplingParams(60, temperature=0.9, seed=1, ignore_eos=True),
]
CHAINS = {
    "draft pass": TreeConfig.chain(3, 0),
    "one source": TreeConfig.chain(3, 1),
    "all sources": TreeConfig.chain(3),
    "lookup": TreeConfig(CHAIN, 8, 0, drafters=("lookup",)),
    "merged": TreeConfig(CHAIN, 12, 2, drafters=DRAFTERS),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Method -> engine, of a model of 4 layers; the one in blocks has no predictors."""
    root = tmp_path_factory.mktemp("quantized")
    model = make_model(root / "model", "llama", changes={"intermediate_size": 128})
    made = {}
    for method in ("int8", "int4"):
        predictors = make_predictors(root / "predictors", model) if method == "int8" else None
        options = ExportOptions(model, root / method, predictors, quantize=method, quality_limit=1e9)
        export_bundle(options)
        made[method] = Engine.load(root / method)
    return made


def prompts(engine):
    rng = np.random.default_rng(0)
    return [rng.integers(2, engine.model.vocab_size, size).tolist() for size in (1, 2, 7, 40)]


def test_chains_give_the_plain_tokens(engines):
    engine = engines["int8"]
    for comparison in compare_trees(engine, prompts(engine), PARAMS, CHAINS):
        assert comparison.differences == [], comparison.name
        assert comparison.tokens > 400


def test_penalties_and_grammars_are_exact_on_chains(engines, tmp_path):
    bundle = add_chat(engines["int8"].bundle.path, tmp_path / "bundle", tokenizer=byte_tokenizer())
    engine = Engine.load(bundle)
    schema = {"type": "object", "required": ["key"], "properties": {"key": {"enum": ["abc", "abd"]}}}
    params = [
        SamplingParams(40, frequency_penalty=0.5, repetition_penalty=1.1, ignore_eos=True),
        SamplingParams(
            40, 1.0, seed=2, structured=StructuredOutput(json_schema=schema), presence_penalty=0.4
        ),
    ]
    chains = {"merged": CHAINS["merged"], "one source": CHAINS["one source"], "forced": TreeConfig.forced()}
    for comparison in compare_trees(engine, prompts(engine)[:2], params, chains):
        assert comparison.differences == [], comparison.name
    drafted = engine.generate([5], params[1], tree=chains["forced"])
    assert drafted.stats.drafted_steps > 0


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("sources", [0, 1, 3])
def test_rows_of_a_chain_have_the_bits_of_single_rows(engines, size, sources):
    engine = engines["int8"]
    tokens = np.random.default_rng(1).integers(2, engine.model.vocab_size, 70).tolist()

    def logits(rows, drafts):
        session = engine.session(100, 80)
        session.forward(PassPlan(chain(tokens[:20]), decode=(19,), prompt=True))
        session.commit(range(20))
        found = []
        for start in range(20, 70, rows):
            piece = tokens[start : start + rows]
            some = tuple(range(min(drafts, len(piece))))
            found.append(session.forward(PassPlan(chain(piece), some, 3 if some else 0)).logits.copy())
            session.commit(range(len(piece)))
        return np.concatenate(found)

    np.testing.assert_array_equal(logits(size, sources), logits(1, 0))


def test_the_default_of_a_quantized_bundle_is_a_chain(engines):
    assert engines["int8"].tree == TreeConfig.chain(3, 1)


def test_a_tree_that_branches_is_refused(engines):
    with pytest.raises(
        FirpError, match="int8 bundles draft chains . got a dynamic tree, expected kind chain"
    ):
        engines["int8"].generate([5], tree=TreeConfig("dynamic", 6, 1))


def test_weights_in_blocks_decode_plainly(engines):
    engine = engines["int4"]
    assert engine.tree is None
    with pytest.raises(FirpError, match=r"weights in blocks decode plainly \(int4\).*--quantize int8"):
        engine.generate([5], tree=CHAINS["lookup"])
    with pytest.raises(FirpError, match="weights in blocks decode plainly.*got trees to choose from"):
        tune(engine, prompts=prompts(engine))


def test_predictors_have_no_place_in_blocks(engines, tmp_path):
    model = engines["int8"].bundle.path.parent / "model"
    options = ExportOptions(model, tmp_path / "b", make_predictors(tmp_path / "p", model), quantize="int4")
    with pytest.raises(FirpError, match="int4 bundles decode plainly . got --predictors"):
        export_bundle(options)
    assert not (tmp_path / "b").exists()


def test_a_quantized_bundle_is_tuned_on_prompts(engines):
    engine = engines["int8"]
    choice = tune(engine, prompts=prompts(engine)[2:])
    assert choice.tree.kind == CHAIN
    assert Engine.load(engine.bundle.path).choice == choice


def test_without_prompts_a_quantized_bundle_is_tuned_by_its_calibrated_chains(engines, monkeypatch):
    engine = engines["int8"]

    def calibrated(*trees):
        found = [Candidate(tree, {"greedy": rate}, {"greedy": 0.0}) for tree, rate in trees]
        known = replace(engine.bundle, calibration=Calibration(tuple(found)))
        monkeypatch.setattr(engine, "bundle", known)

    branching = TreeConfig("dynamic", 2, 0), 99.0
    calibrated(branching)
    with pytest.raises(FirpError, match="all calibrated trees branch.*calibrate again.*--prompts"):
        tune(engine)
    calibrated(branching, (CHAINS["all sources"], 1.01), (CHAINS["merged"], 90.0), (CHAINS["lookup"], 1.02))
    choice = tune(engine)
    assert (choice.tree, choice.drafts, choice.tokens_per_step) == (CHAINS["merged"], True, 90.0)
    assert Engine.load(engine.bundle.path).choice == choice


def test_chains_of_lookup_need_no_predictors(engines, tmp_path):
    model = engines["int8"].bundle.path.parent / "model"
    options = ExportOptions(model, tmp_path / "bundle", quantize="int8", quality_limit=1e9)
    export_bundle(options)
    engine = Engine.load(tmp_path / "bundle")
    trees = {"lookup": replace(TreeConfig.lookup(8), kind=CHAIN)}
    (comparison,) = compare_trees(engine, prompts(engine), PARAMS, trees)
    assert comparison.differences == []
    assert comparison.tokens_per_step > 1
