"""Latent attention: what is cached, lanes that run together, TensorRT's form of the graphs, and the
checkpoints that are refused.
"""

import json
import random

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.family_models import save_family
from support.small_models import make_predictors
from support.tensorrt_double import device_engine

from firp.calib.targets.cost import Point, pass_cost
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.tensorrt.build import BuildOptions, build_engines
from firp.export.tensorrt.plan_text import read_plan, summarize
from firp.export.verify.checks import verify
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees

ROW = 14 + 4  # features of a latent row of these models, and of what is turned of it
AS_RELEASED = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
TREES = (None, TreeConfig("dynamic", 6, 2), TreeConfig("dynamic", 4, 0), TreeConfig.chain(2, 1))


def exported(folder, model_type):
    model = save_family(folder / "model", model_type)
    predictors = make_predictors(folder / "predictors", model, 2, 2)
    export_bundle(ExportOptions(model, folder / "bundle", predictors))
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("latent"), "deepseek_v3")


@pytest.fixture(scope="module")
def engine(bundle):
    with Engine.load(bundle, options=EngineOptions(max_batch=3)) as engine:
        yield engine


def requests(count):
    rng = random.Random(0)
    for index in range(count):
        prompt = [rng.randrange(3, 60) for _ in range(rng.choice([1, 2, 9, 40]))]
        params = SamplingParams(
            rng.randrange(4, 24), temperature=rng.choice([0.0, 0.9]), seed=index, ignore_eos=True
        )
        yield prompt, params, rng.choice(TREES)


def alone(engine, prompt, params):
    return [token for step in engine.steps(engine.request(prompt, params), None) for token in step.tokens]


def test_a_token_takes_one_latent_row_a_layer(engine):
    session = engine.session(64, rows=16)
    session.forward(PassPlan(chain([5, 6, 7])))
    slots = session.batch.kv.slots
    assert slots.shape[:3] == (3, 1, 1)  # layers, lanes, heads
    assert slots.shape[-1] == ROW
    assert not np.isnan(slots).any()
    assert slots[:, 0, 0, :3].any(axis=(1, 2)).all()


def test_what_a_pass_costs_is_counted_from_latent_rows(bundle):
    manifest = load_bundle(bundle).manifest
    cost = pass_cost(manifest, "lower", Point(rows=5, cached_tokens=7, batch=2))
    assert cost.cache_bytes == 2 * 2 * (7 + 5) * ROW * 4  # layers, batch
    heads, keys = 4, 7 + 5
    assert cost.attention_flops == 4 * 2 * (2 * 5) * keys * heads * ROW


def test_requests_that_run_together_get_the_tokens_that_they_get_alone(engine):
    asked = list(requests(9))
    handles = [engine.submit(prompt, params, tree=tree, plain=tree is None) for prompt, params, tree in asked]
    for handle, (prompt, params, _) in zip(handles, asked, strict=True):
        assert handle.result(60).token_ids == alone(engine, prompt, params)
    stats = engine.stats()
    assert stats.steps < stats.tokens


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
def test_the_form_of_tensorrt_decodes_the_same(model_type, tmp_path):
    """Groups of experts that their best one rates, and that their best two do; one sequence, and several
    in one pass.
    """
    bundle = exported(tmp_path, model_type)
    host = Engine.load(bundle)
    device = device_engine(bundle, Limits(max_context=96, max_batch=3, max_rows=20))
    prompts = [[5, 9, 41], [7] * 30]
    params = [SamplingParams(16, ignore_eos=True), SamplingParams(12, temperature=0.8, seed=1)]
    trees = {str(tree): tree for tree in TREES if tree}
    assert all(comparison.differences == [] for comparison in compare_trees(device, prompts, params, trees))
    asked = list(requests(6))
    handles = [device.submit(prompt, params, tree=tree, plain=tree is None) for prompt, params, tree in asked]
    for handle, (prompt, params, _) in zip(handles, asked, strict=True):
        assert handle.result(60).token_ids == alone(host, prompt, params)
    stats = device.stats()
    assert stats.steps < stats.tokens
    device.close()
    host.close()


def test_tensorrt_builds_plans_of_it(tmp_path):
    """512 + 64 features are more than its fused kernels have. Between its products lies little."""
    model = save_family(tmp_path / "model", "deepseek_v2", **AS_RELEASED)
    bundle = tmp_path / "bundle"
    export_bundle(ExportOptions(model, bundle, prediction_layer=1, dtype="float16"))
    record = build_engines(bundle, BuildOptions("tensorrt-rtx", compute_capabilities=("8.9",)))
    decode, _ = record.profiles["lower"]
    assert decode.shapes["past_latent.0"][0] == (0, 1, 1, 576)
    (plans,) = (bundle / "engines").iterdir()
    for kernels in read_plan(plans / "upper.plan"):
        assert summarize(kernels).launches_per_layer <= 34


def test_half_types_follow_the_model(tmp_path):
    model = save_family(tmp_path / "model", "minicpm3")
    export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="float16"))
    report = verify(tmp_path / "bundle", model)
    assert report.passed, report.checks


def edit_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("youtu", {"num_key_value_heads": 2}, "unsupported num_key_value_heads"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "unsupported topk_method"),
        ("deepseek_v2", {"kv_lora_rank": 15}, "unsupported kv_lora_rank"),
        ("youtu", {"kv_lora_rank": 12}, "wrong shape of model.layers.0.self_attn"),
        ("youtu", {"v_head_dim": 8}, "wrong shape of model.layers.0.self_attn.kv_b_proj"),
    ],
)
def test_what_no_graph_follows_is_refused(model_type, changes, message, tmp_path):
    model = save_family(tmp_path, model_type)
    edit_config(model, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(model)


def test_layers_that_predict_later_tokens_are_left_out(tmp_path):
    """As DeepSeek-V3 has them on the hub, after the last layer."""
    model = save_family(tmp_path, "deepseek_v3")
    file = model / "model.safetensors"
    tensors = load_file(file)
    later = {"model.layers.3.eh_proj.weight": tensors["lm_head.weight"].clone()}
    save_file(tensors | later, file, {"format": "pt"})
    edit_config(model, num_nextn_predict_layers=1)
    assert len(open_checkpoint(model).config.layers) == 3
    save_file(tensors | {"model.layers.4.eh_proj.weight": later.popitem()[1]}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not use.*model.layers.4.eh_proj"):
        open_checkpoint(model)
