"""The Hugging Face model in float64, a module at a time."""

import numpy as np
import pytest
import torch
from support.small_models import CONFIGS, make_model
from transformers import AutoModelForCausalLM

from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import computing_in, load_model, model_rows
from firp.export.verify.rows import Sample, random_sample
from firp.runtime.trees.tree import DraftTree


def double_rms_norm(norm, values):
    return values * (values.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight


def assert_same(ours, theirs):
    """Up to the order of sums in float64."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(
        open_checkpoint(make_model(tmp_path_factory.mktemp("reference") / "model", "qwen3")), "float32"
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_modules_in_double_one_by_one_are_the_whole_model_in_double(family, tmp_path):
    path = make_model(tmp_path / "model", family)
    model, ids = load_model(open_checkpoint(path), "float32"), torch.arange(2, 42).reshape(2, 20)
    with torch.no_grad(), computing_in(model, torch.float64):
        ours = model(ids, output_hidden_states=True, use_cache=False)
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


def test_weights_come_back_bit_for_bit(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad(), computing_in(model, torch.float16):
        assert model(torch.tensor([[5, 6]])).logits.dtype == torch.float16
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    with torch.no_grad():
        assert model(torch.tensor([[5, 6]])).logits.dtype == torch.float32


def test_weights_come_back_after_an_error(model):
    with pytest.raises(IndexError), computing_in(model, torch.float64):
        model(torch.tensor([[1_000_000]]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_one_module_at_a_time_is_in_double(model):
    wide = []

    def count(*_):
        wide.append({n for n, p in model.named_parameters() if p.dtype == torch.float64})

    with computing_in(model, torch.float64):
        hooks = [module.register_forward_hook(count, prepend=True) for module in model.modules()]
        with torch.no_grad():
            model(torch.tensor([[5, 6]]))
    for hook in hooks:
        hook.remove()
    assert max(map(len, wide)) == 1  # a weight; this model has no biases


def test_a_tree_is_its_paths(model):
    """Of a tree with branches, each row is the last of a sequence: prompt, ancestors, itself."""
    tree = DraftTree([7, 8, 9, 10, 11], [-1, 0, 0, 1, 1], [0, 1, 1, 2, 2], [1.0] * 5)
    samples = [Sample([3, 4, 5], tree), random_sample([5, 6, 7, 8, 9], 193, 256)]
    found = model_rows(model, 2, samples, torch.float64)
    with torch.no_grad(), computing_in(model, torch.float64):
        for path, row in (([7], 0), ([7, 8], 1), ([7, 9], 2), ([7, 8, 10], 3), ([7, 8, 11], 4)):
            out = model(torch.tensor([[3, 4, 5, *path]]), output_hidden_states=True)
            assert_same(found[0].tree.logits[row], out.logits[0, -1])
            assert_same(found[0].tree.hidden_states[row], out.hidden_states[2][0, -1])
        out = model(torch.tensor([[5, 6, 7, 8, 9]]))
    assert_same(found[1].prefill.logits, out.logits[0])


def test_weights_are_rounded_as_the_bundle_stores_them(tmp_path):
    path = make_model(tmp_path / "model", "llama")
    checkpoint = open_checkpoint(path)
    full, rounded = load_model(checkpoint, "float32"), load_model(checkpoint, "float16")
    for a, b in zip(full.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
        assert not torch.equal(a, b)
