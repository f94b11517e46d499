"""A graph that is loaded is, to the byte, the one that the exporter writes for the manifest."""

import os
import shutil
import time

import numpy as np
import onnx
import pytest
from support.hostile import list_again

from firp.export.tensorrt.build import graph_weight_bytes
from firp.runtime.bundle.format import load_bundle, read_manifest
from firp.runtime.bundle.graphs.stored import stored_weights
from firp.runtime.bundle.graphs.written import check_graphs, graph_files
from firp.runtime.errors import BundleError


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def edit(bundle, change, name="lower.onnx"):
    model = onnx.load(bundle / name, load_external_data=False)
    change(model)
    (bundle / name).write_bytes(model.SerializeToString(deterministic=True))
    list_again(bundle, name)


def external(model, key, value, at=0):
    tensor = [weight for weight in model.graph.initializer if weight.external_data][at]
    next(entry for entry in tensor.external_data if entry.key == key).value = value


def loop(model):
    model.graph.node[0].op_type = "Loop"


def nested(model):
    attribute = model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.initializer.add(name="hidden")


def another_operator(model):
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type = "Tanh"


def another_epsilon(model):
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f *= 1.0001


def a_node_more(model):
    model.graph.node.add(op_type="Abs", input=["position_ids"], output=["unused"])


def sizes_that_grow(model):
    constant = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("ints_"))
    constant.raw_data = np.array([2**31] * (len(constant.raw_data) // 8), np.int64).tobytes()


def a_longer_name(model):
    model.graph.node[0].name = "x" * 4000


@pytest.mark.parametrize("family", ["llama", "llama_untied_biases", "qwen3", "mistral_window"])
def test_the_files_are_what_the_onnx_package_writes(family, family_bundle):
    """Its own serializer gives the same bytes back, and its checker agrees with them."""
    bundle = family_bundle(family)[1]
    for file in bundle.glob("*.onnx"):
        model = onnx.load(file, load_external_data=False)
        assert model.SerializeToString(deterministic=True) == file.read_bytes()
        onnx.checker.check_model(file)


def test_every_graph_uses_its_own_file_alone(bundle):
    for graph in ("lower", "predictors", "upper"):
        model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
        pairs = {(e.key, e.value) for tensor in model.graph.initializer for e in tensor.external_data}
        file = "predictors.safetensors" if graph == "predictors" else "model.safetensors"
        assert {value for key, value in pairs if key == "location"} == {file}
        assert graph_weight_bytes(bundle / f"{graph}.onnx") > 0


@pytest.mark.parametrize("name", ["lower.onnx", "predictors.onnx", "upper.onnx", "upper.prefix.onnx"])
@pytest.mark.parametrize("location", ["elsewhere.bin", "./model.safetensors", "/dev/zero"])
def test_weights_of_another_file_are_refused(location, name, bundle):
    edit(bundle, lambda model: external(model, "location", location, at=-1), name)
    with pytest.raises(BundleError, match=rf"not the graph that firp export writes.*{name}'"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: external(model, "offset", str(2**40)),
        lambda model: external(model, "length", "-1"),
        loop,
        nested,
        another_operator,
        another_epsilon,
        a_node_more,
        sizes_that_grow,
        a_longer_name,
        lambda model: setattr(model.graph.node[0], "domain", "com.other"),
        lambda model: model.graph.sparse_initializer.add(),
        lambda model: model.functions.add(name="Gemm"),
        lambda model: setattr(model.opset_import[0], "version", 23),
        lambda model: setattr(model.graph.input[0], "name", "ids"),
        lambda model: setattr(model, "doc_string", "harmless"),
    ],
)
def test_what_the_exporter_does_not_write_is_refused(change, bundle):
    edit(bundle, change)
    with pytest.raises(BundleError, match=r"lower.onnx' differs from byte \d+ on") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_every_byte_counts(bundle):
    """Cut anywhere, or with any bit turned over, a graph is refused."""
    file = bundle / "upper.onnx"
    content = file.read_bytes()
    mutants = [content[:at] for at in range(0, len(content), 971)] + [content + b"\0", b"\xff" * 40]
    for at in range(0, len(content), 397):
        mutants.append(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
    for mutant in mutants:
        file.write_bytes(mutant)
        list_again(bundle, file.name)
        with pytest.raises(BundleError, match="not the graph that firp export writes"):
            load_bundle(bundle, check_hashes=False)


def test_a_huge_graph_is_not_read(bundle):
    os.truncate(bundle / "upper.onnx", 3 << 30)
    list_again(bundle, "upper.onnx", hashed=False)
    started = time.process_time()
    with pytest.raises(BundleError, match="upper.onnx' differs from byte"):
        load_bundle(bundle, check_hashes=False)
    assert time.process_time() - started < 1


def test_the_frequent_tokens_are_the_exporter_s_to_choose(family_bundle, bundle):
    """What the file lists is taken, and checked; nothing else of it is."""
    blueprint = read_manifest(bundle / "firp.json").blueprint
    weights = stored_weights(bundle, blueprint)
    weights["draft_head.weight"] = weights["embed_tokens.weight"]._replace(shape=(100, 64))
    tokens = np.sort(np.random.default_rng(0).permutation(193)[:100])
    upper = next(g for g in graph_files(blueprint, weights, "in place", tokens) if g.spec.name == "upper")
    (bundle / "upper.onnx").write_bytes(upper.content)
    check_graphs(bundle, blueprint, weights, "in place")
    for wrong in (tokens[::-1], tokens - 50, tokens + 100):
        at = upper.content.index(tokens.tobytes())
        changed = upper.content[:at] + wrong.tobytes() + upper.content[at + len(wrong.tobytes()) :]
        (bundle / "upper.onnx").write_bytes(changed)
        with pytest.raises(BundleError, match=r"bad draft tokens.*ascending ids in \[0, 193\)"):
            check_graphs(bundle, blueprint, weights, "in place")


def test_the_builder_s_sum_of_a_file_that_is_no_graph_is_one_line(tmp_path):
    (tmp_path / "lower.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match="graph does not load"):
        graph_weight_bytes(tmp_path / "lower.onnx")
