"""Experts in TensorRT's form of the graphs: few rows get copies of the weights that they chose, many run
through all experts. Both make the same.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.family_models import save_family
from support.small_models import make_predictors
from support.tensorrt_double import device_engine

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees

FEW = 2  # rows, of models with 12 experts of which 2 are chosen: a third of them
PROMPTS = [[7, 40, 3, 22, 51, 9, 30], [5]]
TREES = {"chain": TreeConfig.chain(2, 1), "dynamic": TreeConfig("dynamic", rows=8, draft_sources=2)}


@pytest.fixture(scope="module", params=["gpt_oss", "qwen2_moe"])  # with biases; with a shared expert
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    name = "num_local_experts" if request.param == "gpt_oss" else "num_experts"
    model = save_family(folder / "model", request.param, **{name: 12, "num_experts_per_tok": 2})
    predictors = make_predictors(folder / "predictors", model, 2, 2)
    export_bundle(ExportOptions(model, folder / "bundle", predictors))
    return folder / "bundle"


def first_rows(bundle, count):
    """Hidden states of a prompt's first rows at the prediction layer, and how many rows each layer's experts
    took as few and as many.
    """
    spec = load_bundle(bundle).manifest.graphs_for(PREFIX)["lower"]
    graph = onnx.load(bundle / spec.file, load_external_data=False)
    parts = [list(node.output) for node in graph.graph.node if is_of_rows(node)]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for names in parts for name in names)
    file = bundle / "more.onnx"
    onnx.save(graph, file)
    feeds = {
        tensor.name: np.zeros(tensor.sizes({"B": 1, "T": count, "P": 0, "W": 0}), np.float32)
        for tensor in spec.inputs
    }
    feeds["input_ids"] = np.arange(3, 3 + count)[None]
    feeds |= {"position_ids": np.arange(count)[None]} if "position_ids" in feeds else {}
    for name in feeds:
        if name.startswith("attention_bias"):
            feeds[name] = np.where(np.tri(count, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    hidden, *sizes = session.run(["hidden_states", *(name for names in parts for name in names)], feeds)
    file.unlink()
    return hidden[0], {len(part) for part in sizes[::2]}, {len(part) for part in sizes[1::2]}


def is_of_rows(node):
    return node.op_type == "Split" and any(each.name == "axis" and each.i == 0 for each in node.attribute)


def test_few_rows_make_what_many_make(bundle):
    every, few, many = first_rows(bundle, 6)
    assert (few, many) == ({0}, {6})
    for count in range(1, 6):
        hidden, few, many = first_rows(bundle, count)
        assert (few, many) == (({count}, {0}) if count <= FEW else ({0}, {count}))
        np.testing.assert_allclose(hidden, every[:count], rtol=1e-4, atol=1e-5)


def test_decoding_is_that_of_the_cpu(bundle):
    params = [
        SamplingParams(20, ignore_eos=True),
        SamplingParams(20, temperature=0.8, seed=1, ignore_eos=True),
    ]
    host, device = Engine.load(bundle, check_hashes=False), device_engine(bundle)
    for prompt in PROMPTS:
        for each in params:
            plain = host.generate(prompt, each, plain=True).token_ids
            assert device.generate(prompt, each, plain=True).token_ids == plain
    drafted = compare_trees(device, PROMPTS, params, TREES)
    assert all(comparison.differences == [] for comparison in drafted)
