"""The Hugging Face model in float64, a module at a time."""

import numpy as np
import pytest
import torch
from support.family_models import save_family
from support.small_models import CONFIGS, make_model
from transformers import AutoModelForCausalLM

from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference, model_rows
from firp.export.verify.rows import Sample, random_sample
from firp.runtime.trees.tree import DraftTree


def double_rms_norm(norm, values):
    return values * (values.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight


def assert_same(ours, theirs):
    """Up to the order of sums in float64."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(
        open_checkpoint(make_model(tmp_path_factory.mktemp("reference") / "model", "qwen3")), "float32"
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_modules_in_double_one_by_one_are_the_whole_model_in_double(family, tmp_path):
    path = make_model(tmp_path / "model", family)
    ids = torch.arange(2, 42).reshape(2, 20)
    ours = Reference(open_checkpoint(path), "float32").run(ids, torch.float64, output_hidden_states=True)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    for parameter in whole.parameters():
        parameter.data = parameter.data.double()
    for module in whole.modules():
        if "RMSNorm" in type(module).__name__:  # which would compute in float32
            module.forward = lambda values, norm=module: double_rms_norm(norm, values)
    whole.set_attn_implementation("sdpa")  # eager computes softmax in float32
    with torch.no_grad():
        theirs = whole(ids, output_hidden_states=True, use_cache=False)
    assert ours.logits.dtype == torch.float64
    for a, b in zip((*ours.hidden_states, ours.logits), (*theirs.hidden_states, theirs.logits), strict=True):
        assert_same(a, b)


def held(reference):
    """Weights that have memory, and their types."""
    return {name: p.dtype for name, p in reference.model.named_parameters() if not p.is_meta}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_every_type_is_computed_in_and_no_weight_is_left(dtype, reference):
    assert reference.run(torch.tensor([[5, 6]]), dtype).logits.dtype == dtype
    assert held(reference) == {}


def test_no_weight_is_left_after_an_error(reference):
    with pytest.raises(IndexError):
        reference.run(torch.tensor([[1_000_000]]), torch.float64)
    assert held(reference) == {}


def test_one_module_at_a_time_is_in_memory(reference):
    seen = []
    hooks = [
        module.register_forward_hook(lambda *_: seen.append(held(reference)), prepend=True)
        for module in reference.model.modules()
    ]
    reference.run(torch.tensor([[5, 6]]), torch.float64)
    for hook in hooks:
        hook.remove()
    assert max(map(len, seen)) == 1  # a weight; this model has no biases
    assert {dtype for found in seen for dtype in found.values()} == {torch.float32, torch.float64}


def test_a_tree_is_its_paths(reference):
    """Of a tree with branches, each row is the last of a sequence: prompt, ancestors, itself."""
    tree = DraftTree([7, 8, 9, 10, 11], [-1, 0, 0, 1, 1], [0, 1, 1, 2, 2], [1.0] * 5, [""] * 5)
    samples = [Sample([3, 4, 5], tree), random_sample([5, 6, 7, 8, 9], 193, 256)]
    found = model_rows(reference, 2, samples, torch.float64)
    for path, row in (([7], 0), ([7, 8], 1), ([7, 9], 2), ([7, 8, 10], 3), ([7, 8, 11], 4)):
        out = reference.run(torch.tensor([[3, 4, 5, *path]]), torch.float64, output_hidden_states=True)
        assert_same(found[0].tree.logits[row], out.logits[0, -1])
        assert_same(found[0].tree.hidden_states[row], out.hidden_states[2][0, -1])
    out = reference.run(torch.tensor([[5, 6, 7, 8, 9]]), torch.float64)
    assert_same(found[1].prefill.logits, out.logits[0])


def test_weights_are_rounded_as_the_bundle_stores_them(tmp_path):
    path = make_model(tmp_path / "model", "llama")
    ids = torch.tensor([[5, 6, 7]])
    found = Reference(open_checkpoint(path), "float16").run(ids).logits
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        exact = model(ids).logits
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        torch.testing.assert_close(found, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_a_router_that_stays_in_float32_runs_in_a_half_type(tmp_path):
    """Hunyuan's, whose inputs are float32 whatever the others are."""
    reference = Reference(open_checkpoint(save_family(tmp_path / "model", "hunyuan_v1_moe")), "float16")
    ids = torch.tensor([[3, 14, 15]])
    half, exact = (reference.run(ids, dtype).logits.double() for dtype in (torch.float16, torch.float64))
    assert (half - exact).abs().max() < 0.05 * exact.abs().max()
