"""Layers with a window on device-resident buffers, on a double of the device: they read their last slots
alone, and decode what Hugging Face and ONNX Runtime decode.
"""

import shutil

import numpy as np
import pytest
from support.family_models import save_family
from support.small_models import make_predictors
from support.tensorrt_double import device_engine

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference
from firp.export.verify.tokens import plain_against_generate
from firp.runtime.backends.slot_buckets import most_slots
from firp.runtime.bundle import graph_spec
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig

CONTEXT = 400
LIMITS = Limits(CONTEXT, 1, 20)
FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = {  # a family, fields of it, where it is split
    "both kinds in one half": ("cwm", {}, 2),  # layers with a window of 7 about one that sees all
    "one kind a half": ("cwm", {"layer_types": [FULL, SLIDING, SLIDING]}, 1),
    "all alike, narrower than trees are deep": ("mistral", {"sliding_window": 2}, 2),
    "wider than most texts": ("cwm", {"sliding_window": 130}, 1),
    "sinks": ("gpt_oss", {}, 1),
}
TREES = {
    "tree": TreeConfig("dynamic", 8, 2),
    "chain": TreeConfig.chain(3, 1),
    "draft pass": TreeConfig("dynamic", 5, 0),
}
TEXT = np.random.default_rng(0).integers(2, 60, 330).tolist()
PROMPTS = TEXT[:2], TEXT[:110], TEXT  # of more than one pass the last


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A bundle of one kind, and its model."""
    made = {}

    def make(kind):
        if kind not in made:
            family, fields, layer = KINDS[kind]
            folder = tmp_path_factory.mktemp("window")
            model = save_family(folder / "model", family, max_position_embeddings=CONTEXT, **fields)
            predictors = make_predictors(folder / "predictors", model, 3, layer)
            export_bundle(ExportOptions(model, folder / "bundle", predictors))
            made[kind] = folder / "bundle", model
        return made[kind]

    return make


@pytest.fixture
def load(make, tmp_path):
    """The engine of the host, and that of the device."""

    def load(kind, limits=LIMITS):
        bundle = shutil.copytree(make(kind)[0], tmp_path / "bundle")
        return Engine.load(bundle), device_engine(bundle, limits)

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_decodes_what_the_cpu_and_hugging_face_decode(kind, load, make):
    host, device = load(kind)
    for prompt, temperature in zip(PROMPTS, (0.0, 0.8, 0.0), strict=True):
        params = SamplingParams(30, temperature=temperature, seed=1, ignore_eos=True)
        plain = host.generate(prompt, params, plain=True).token_ids
        assert device.generate(prompt, params, plain=True).token_ids == plain
        for name, tree in TREES.items():
            assert device.generate(prompt, params, tree=tree).token_ids == plain, name
    counts = device.sessions.graph_counts
    assert counts["replays"] > counts["enqueued"]
    reference = Reference(open_checkpoint(make(kind)[1]), "float32")
    assert plain_against_generate("plain = generate", device, reference, [TEXT[:110]], "float32").passed


def next_logits(engine, spoil):
    """Logits after a text, some slots of whose cache `spoil` has overwritten."""
    session = engine.session(CONTEXT, rows=20)
    for start in (0, 75):
        session.forward(PassPlan(chain(TEXT[start : start + 75]), decode=(74,), prompt=True))
        session.commit(range(75))
    kv = session.batch.kv

    def overwrite(slabs, start, stop):
        for slab in slabs:
            slots = kv.slots[slab][start:stop]
            kv.memory.write(slots, np.full(slots.shape, np.nan, np.float32))

    spoil(overwrite)
    return session.forward(PassPlan(chain([5, 6, 7]))).logits.copy()


def test_what_lies_before_a_window_is_not_read(load):
    """Windows of 7 after 150 tokens begin at slot 144; a step of 64 before it is in view."""
    _, device = load("both kinds in one half")
    windowed, all_seeing = (0, 1, 4, 5), (2, 3)  # slabs
    untouched = next_logits(device, lambda overwrite: None)
    found = next_logits(device, lambda overwrite: overwrite(windowed, 0, 128))
    np.testing.assert_array_equal(found, untouched)
    for slabs, slot in ((windowed, 150 - 6), (all_seeing, 0)):
        assert np.isnan(next_logits(device, lambda overwrite: overwrite(slabs, slot, slot + 1))).any()  # noqa: B023


def test_a_window_binds_few_slots_by_their_address(load):
    _, device = load("both kinds in one half")
    device.generate(TEXT[:250], SamplingParams(40, ignore_eos=True), tree=TREES["tree"])
    (session,) = device.sessions._kept
    buffers = session.batch.buffers
    decoding = [each for key, each in buffers._bindings.items() if "past_key.0" in each.inputs]
    assert decoding
    for binding in decoding:
        windowed, every = (binding.inputs[f"past_key.{layer}"] for layer in (0, 1))
        rows = binding.inputs["attention_bias"].shape[2]
        assert windowed.shape[0] <= most_slots(7, CONTEXT) == 128 < 250 <= every.shape[0]
        assert every.address == buffers.kv.slots[2].address
        slot = (windowed.address - buffers.kv.slots[0].address) // (windowed.nbytes // windowed.shape[0])
        assert slot == every.shape[0] - windowed.shape[0]
        assert binding.inputs["attention_bias_window"].shape[3] == windowed.shape[0] + rows


def test_requests_of_unlike_lengths_see_their_own_windows(load):
    host, device = load("both kinds in one half", Limits(CONTEXT, 4, 20))
    asked = [(TEXT[:300], 60), (TEXT[:9], 60), (TEXT[:70], 50), (TEXT[40:220], 30), (TEXT[:2], 40)]
    trees = [None, *TREES.values(), None]
    handles = [
        device.submit(prompt, SamplingParams(count, ignore_eos=True), tree=tree, plain=tree is None)
        for (prompt, count), tree in zip(asked, trees, strict=True)
    ]
    for handle, (prompt, count) in zip(handles, asked, strict=True):
        params = SamplingParams(count, ignore_eos=True)
        assert handle.result(120).token_ids == host.generate(prompt, params, plain=True).token_ids
    stats = device.stats()
    assert stats.steps < stats.tokens / 2  # they ran together
    device.close()


def test_plans_hold_few_slots_of_a_window(load):
    _, device = load("both kinds in one half")
    profiles = {name: graph.profiles for name, graph in device.sessions.graphs.items()}
    for profile in profiles["lower"]:
        assert profile.shapes["past_key.0"][2][0] == most_slots(7, CONTEXT)
        assert profile.shapes["past_key.1"][2][0] == CONTEXT


def test_bundles_whose_windows_read_all_slots_are_refused(make, tmp_path, monkeypatch):
    """As older versions wrote them."""
    monkeypatch.setattr(graph_spec, "_slots", lambda window: "P")
    model = make("one kind a half")[1]
    export_bundle(ExportOptions(model, tmp_path / "old", prediction_layer=1))
    monkeypatch.undo()
    message = r"not the graph that firp export writes.*upper\.prefix\.onnx.*Fix: export the model again"
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / "old")
