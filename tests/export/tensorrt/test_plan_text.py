"""What the plans of TensorRT-RTX launch: fused attention and merged GEMMs in every layer, no copy
of the cache.
"""

import pytest
import torch
from support.small_models import make_predictors
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3Config

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.tensorrt.build import BuildOptions, build_engines, choose_capabilities, graph_weight_bytes
from firp.export.tensorrt.plan_text import read_plan, summarize
from firp.runtime.backends.nvidia_library import load_library
from firp.runtime.bundle.engine_record import find_engine_folder, fitting_profile
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.graphs import builder
from firp.runtime.bundle.limits import Limits

RTX = "tensorrt-rtx"
ONE_DEVICE = BuildOptions(RTX, compute_capabilities=("8.9",))

SIZES = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 448, "max_position_embeddings": 2048}


def synthetic(folder, config, dtype):
    """A bundle of random weights, split at three quarters."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    predictors = make_predictors(
        folder / "predictors", folder / "model", prediction_layer=config.num_hidden_layers * 3 // 4
    )
    export_bundle(ExportOptions(folder / "model", folder / "bundle", predictors, dtype=dtype))
    return folder / "bundle"


def launches(bundle, record):
    """graph -> a summary for each profile."""
    engines = find_engine_folder(
        load_bundle(bundle), RTX, record.library_version, record.compute_capabilities[0]
    )
    return {
        name: [summarize(kernels) for kernels in read_plan(engines.plan_path(name))] for name in record.plans
    }


def check_fusions(bundle, record, launches_per_layer):
    """In every layer of every profile one fused attention and four GEMMs (q, k and v are one, gate
    and up another), and keys and values that only the concat before the attention copies.
    """
    manifest, found = load_bundle(bundle).manifest, launches(bundle, record)
    heads = 1 + (manifest.num_predictors > 0)
    for graph in ("lower", "upper"):
        count = len(manifest.layers(graph))
        assert len(found[graph]) == 2  # decode and prefill
        for summary in found[graph]:
            assert (summary.attentions, summary.copied_caches) == (count, 0), graph
            # the upper graph has the output layer too, and another for pseudo rows
            # (TensorRT may make one GEMM of both)
            more = range(1, heads + 1) if graph == "upper" else range(1)
            assert summary.gemms - 4 * count in more, graph
            assert summary.launches <= launches_per_layer * count + 10, graph
            assert count == 1 or summary.launches_per_layer <= launches_per_layer
    assert all(summary.launches <= 3 for summary in found["predictors"])
    assert all(summary.gemms == 1 for summary in found["predictors"])


def test_demo_model_launches(demo16):
    check_fusions(*demo16, launches_per_layer=12)


def test_8_layers_with_grouped_queries_launch(tmp_path):
    config = LlamaConfig(
        **SIZES, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, head_dim=64
    )
    bundle = synthetic(tmp_path, config, "float16")
    check_fusions(bundle, build_engines(bundle, ONE_DEVICE), launches_per_layer=12)


def test_experts_launch_together(tmp_path):
    """However many they are."""
    config = MixtralConfig(
        **SIZES, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_local_experts=24
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    bundle = tmp_path / "bundle"
    export_bundle(ExportOptions(tmp_path / "model", bundle, prediction_layer=1, dtype="float16"))
    record = build_engines(bundle, ONE_DEVICE)
    _, upper = launches(bundle, record).values()
    for summary in upper:
        assert (summary.attentions, summary.copied_caches) == (2, 0)
        assert summary.gemms <= 2 * 7 + 1  # a router, and two for each form of experts
        assert summary.launches_per_layer <= 21
    weights = graph_weight_bytes(bundle / "upper.prefix.onnx")
    experts = 24 * 3 * 2 * 256 * 448  # of one layer; kernels take 9.3 MB, however many experts
    assert record.plans["upper"].size < weights + experts


def test_bfloat16_with_norms_on_queries_and_batches_launches(tmp_path):
    config = Qwen3Config(
        **SIZES, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1, head_dim=128
    )
    bundle = synthetic(tmp_path, config, "bfloat16")
    every = choose_capabilities(load_library(RTX), BuildOptions(RTX), None)
    record = build_engines(bundle, BuildOptions(RTX, Limits(max_batch=4), every))
    assert len(record.compute_capabilities) > 1
    check_fusions(bundle, record, launches_per_layer=14)
    lower = load_bundle(bundle).manifest.graphs_for(PREFIX)["lower"]
    for sizes, profile in (({"B": 4, "T": 64, "P": 2048}, 0), ({"B": 1, "T": 256, "P": 0}, 1)):
        shapes = {tensor.name: tensor.sizes(sizes) for tensor in lower.inputs}
        assert fitting_profile("lower", record.profiles["lower"], shapes) == profile


def test_a_lost_fusion_is_seen(half_bundle, tmp_path, monkeypatch, any_graph):
    """Attention with capped scores, written out: TensorRT-RTX does not fuse it, and the summary
    says what that costs.
    """
    builder_op = builder.GraphBuilder.op

    def op(self, op_type, *inputs, **attributes):
        if op_type != "Attention":
            return builder_op(self, op_type, *inputs, **attributes)
        query, keys, values, bias = inputs
        heads, shared = self.config.attention.num_heads, self.config.attention.num_key_value_heads
        keys, values = (
            builder_op(
                self,
                "Concat",
                *(
                    head
                    for head in self.tape.op_multi_out(
                        "Split", [cached], {"axis": 1, "num_outputs": shared}, num_outputs=shared
                    )
                    for _ in range(heads // shared)
                ),
                axis=1,
            )
            for cached in (keys, values)
        )
        scores = builder_op(self, "MatMul", query, builder_op(self, "Transpose", keys, perm=[0, 1, 3, 2]))
        capped = builder_op(self, "Mul", builder_op(self, "Tanh", scores), self.scalar(30.0))
        return builder_op(
            self,
            "MatMul",
            builder_op(self, "Softmax", builder_op(self, "Add", capped, bias), axis=-1),
            values,
        )

    monkeypatch.setattr(builder.GraphBuilder, "op", op)
    export_bundle(
        ExportOptions(tmp_path / "model", tmp_path / "written_out", tmp_path / "predictors", dtype="float16")
    )
    record = build_engines(tmp_path / "written_out", ONE_DEVICE)
    lower = launches(tmp_path / "written_out", record)["lower"][0]
    assert (lower.attentions, lower.copied_caches) == (0, 4)
    assert lower.gemms > 8
    with pytest.raises(AssertionError):
        check_fusions(tmp_path / "written_out", record, launches_per_layer=12)


def test_a_plan_without_text_lists_nothing(tmp_path):
    (tmp_path / "lower.plan").write_bytes(b"\x00" * 100)
    assert read_plan(tmp_path / "lower.plan") == []
