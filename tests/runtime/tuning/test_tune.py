"""Tuning on prompts: trees are decoded with, also where the bundle has no predictors."""

import json
import shutil

import pytest
from support.command_line import firp
from support.small_models import make_model

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.bundle.calibration import Candidate, LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.progress import silent
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import FIRP, LOOKUP, TreeConfig
from firp.runtime.tuning.tune import LOOKUP_ROWS, NEW_TOKENS, measured, promising_trees, tune

PROMPTS = [[3, 4, 5] * 4, [7, 8]]
LATENCY = LatencyTable("test", 6, 8, (64,), (1, 2), ((3.0, 3.3),), ((1.5, 1.65),), 0.1, 0.2, 0.4)


@pytest.fixture(scope="module")
def without_predictors(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    export_bundle(ExportOptions(make_model(root / "model", "llama"), root / "bundle"))
    return root / "bundle"


@pytest.fixture
def bundle(without_predictors, tmp_path):
    return shutil.copytree(without_predictors, tmp_path / "bundle")


def test_without_predictors_lookup_is_chosen(bundle):
    choice = tune(Engine.load(bundle), prompts=PROMPTS)
    assert choice.tree.drafters == (LOOKUP,)
    assert choice.tree.rows in LOOKUP_ROWS
    assert Engine.load(bundle).choice == choice


def test_without_trees_prompts_are_asked_for(bundle):
    with pytest.raises(FirpError, match="no calibrated trees.*give --prompts"):
        tune(Engine.load(bundle))


def test_prompts_tell_nothing_about_other_text(bundle):
    with pytest.raises(FirpError, match="prompts are decoded . got --text text"):
        tune(Engine.load(bundle), "text", PROMPTS)


def test_the_command_tunes_on_a_prompt_file(bundle, tmp_path):
    lines = [json.dumps({"input_ids": prompt}) for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    result = firp("tune", bundle, "--prompts", tmp_path / "prompts.jsonl", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["tree"]["drafters"] == [LOOKUP]
    assert len(Engine.load(bundle).manifest.choices) == 1


def test_a_tree_is_measured_by_decoding_with_it(family_bundle):
    engine, tree = Engine.load(family_bundle("llama")[1]), TreeConfig("dynamic", 4, 2)
    (found,) = measured(engine, [tree], PROMPTS, "greedy", silent)
    stats = [engine.generate(prompt, SamplingParams(NEW_TOKENS), tree=tree).stats for prompt in PROMPTS]
    tokens, steps = (sum(getattr(item, name) for item in stats) for name in ("decoded_tokens", "steps"))
    assert found.tree == tree
    assert found.tokens_per_step == {"greedy": pytest.approx(tokens / steps)}
    assert 0 <= found.undrafted["greedy"] < 1
    assert 1 < found.mean_rows["greedy"] <= 4


def test_the_best_calibrated_tree_is_tried_alone_pruned_and_merged():
    worse, best = TreeConfig("dynamic", 8, 2), TreeConfig("dynamic", 6, 2)
    candidates = [
        Candidate(tree, {"greedy": rate}, {"greedy": 0.0}) for tree, rate in ((worse, 1.2), (best, 1.9))
    ]
    trees = promising_trees(candidates, LATENCY, 3, "greedy")
    assert [tree.rows for tree in trees if tree.drafters == (LOOKUP,)] == list(LOOKUP_ROWS)
    assert best in trees
    assert worse not in trees
    assert {tree.drafters for tree in trees} == {(FIRP,), (LOOKUP,), (FIRP, LOOKUP)}
    assert len([tree for tree in trees if tree.drafters == (FIRP,) and tree.least > 0]) == 1


def test_a_tree_of_other_text_is_not_tried():
    other = Candidate(TreeConfig("dynamic", 6, 2), {"sampled": 1.9}, {"sampled": 0.0})
    trees = promising_trees([other], LATENCY, 3, "greedy")
    assert {tree.drafters for tree in trees} == {(LOOKUP,)}
