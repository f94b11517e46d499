"""Families that GGUF files hold: the values and the blueprint of each, as its directory has them."""

import numpy as np
import pytest
import torch
from support.family_models import CHANGES, save_family
from support.gguf_files import architecture_name, values_of, write_gguf
from transformers import AutoModelForCausalLM

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.quantize.kept import kept_format, kept_integers
from firp.export.sources.gguf.architectures import READ_AS
from firp.export.sources.gguf.blocks import dequantize
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.weights.stream import read_array
from firp.export.weights.torch_model import torch_model
from firp.runtime.bundle.precision import BLOCKS8
from firp.runtime.errors import CheckpointError

LONG_ROPE = {
    "original_max_position_embeddings": 24,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.25],
        "long_factor": [2.0, 3.5],
        "attention_factor": 1.25,
        "original_max_position_embeddings": 24,
    },
}


YARN = CHANGES["deepseek_v3"]["rope_parameters"] | {"mscale": 0.75, "mscale_all_dim": 0.75}
OLMO_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e5,
    "factor": 8.0,
    "original_max_position_embeddings": 12,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
MINISTRAL_YARN = CHANGES["ministral3"]["rope_parameters"] | {"mscale": 1.0, "mscale_all_dim": 1.0}
PHI_ROPE = LONG_ROPE["rope_parameters"] | {
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [2.0, 3.5, 4.0, 5.0],
    "short_mscale": 1.25,
    "long_mscale": 1.25,
}
MINICPM3 = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "v_head_dim": 8}
MINI_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.25],
    "long_factor": [1.5, 2.0],
    "original_max_position_embeddings": 96,
}
ROPE = {"position_embedding_type": "rope"}
WIDE_GPT2 = {"n_inner": 128, "intermediate_size": None}  # four times the width, as its files say
WIDE_FALCON = {"ffn_hidden_size": 128, "intermediate_size": None, "max_position_embeddings": 2048}
FALCON_7B = {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 1}
ROUNDED = ("gemma", "gemma2", "gemma3_text", "nemotron")  # norms plus and less 1


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_moe", {"mlp_only_layers": []}),
        ("granite", {"tie_word_embeddings": True}),
        ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": None}),
        ("cohere", {"tie_word_embeddings": True}),
        ("cohere", {"tie_word_embeddings": True, "use_qk_norm": False}),
        ("cohere2", {"tie_word_embeddings": True, "num_hidden_layers": 5, "layer_types": None}),
        ("gemma", {"tie_word_embeddings": True}),
        ("gemma2", {"tie_word_embeddings": True}),
        ("gemma3_text", {"tie_word_embeddings": True, "num_hidden_layers": 7, "layer_types": None}),
        ("olmo", {}),
        ("olmo2", {"tie_word_embeddings": True}),
        ("olmo3", {}),
        ("phi", {"qk_layernorm": False}),
        ("phi3", {"sliding_window": 9}),
        ("phi3", LONG_ROPE),
        ("starcoder2", {"tie_word_embeddings": True, "sliding_window": None}),
        ("stablelm", {}),
        ("stablelm", {"use_parallel_residual": False, "use_qkv_bias": False, "qk_layernorm": False}),
        ("nemotron", {}),
        ("glm4", {}),
        ("seed_oss", {}),
        ("arcee", {}),
        ("ernie4_5", {}),
        ("hunyuan_v1_dense", {}),
        ("mixtral", {}),
        ("mixtral", {"sliding_window": 6}),
        ("qwen2_moe", {"norm_topk_prob": False}),
        ("olmoe", {"norm_topk_prob": False, "clip_qkv": None}),
        (
            "olmo3",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                    "full_attention": OLMO_YARN,
                }
            },
        ),
        ("ministral3", {"rope_parameters": MINISTRAL_YARN}),
        ("gpt_oss", {"swiglu_limit": 7.0}),
        ("deepseek_v2", {"rope_parameters": YARN}),
        ("deepseek_v2", {"topk_method": "greedy", "q_lora_rank": None, "rope_parameters": None}),
        ("deepseek_v3", {"rope_parameters": YARN}),
        ("youtu", {}),
        ("minicpm3", MINICPM3),
        ("minicpm3", MINICPM3 | {"rope_parameters": MINI_ROPE}),
        ("glm4_moe", {}),
        ("minimax_m2", {}),
        ("granitemoe", {}),
        ("granitemoeshared", {}),
        ("ernie4_5_moe", {"intermediate_size": 48}),
        ("hunyuan_v1_moe", {}),
        ("afmoe", {"num_hidden_layers": 5, "layer_types": None}),
        ("exaone", {}),
        ("exaone4", {}),
        ("exaone4", {"sliding_window": None, "layer_types": None}),
        ("exaone_moe", {}),
        ("dots1", {}),
        ("apertus", {"rope_parameters": CHANGES["ministral"]["rope_parameters"]}),
        ("phimoe", {"rope_parameters": PHI_ROPE, "router_jitter_noise": 0.01}),
        ("glm", {}),
        ("jais2", {}),
        ("dbrx", {}),
        ("gpt2", WIDE_GPT2),
        ("gpt_bigcode", WIDE_GPT2),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("bloom", {}),
        ("mpt", {}),
        ("falcon", WIDE_FALCON | {"bias": False}),
        ("falcon", WIDE_FALCON | {"bias": False, "num_ln_in_parallel_attn": 1}),
        ("falcon", WIDE_FALCON | {"bias": False} | FALCON_7B),
    ],
)
def test_files_say_what_their_directories_say(family, changes, tmp_path):
    model = save_family(tmp_path / "model", family, **changes)
    held = write_gguf(tmp_path / "model.gguf", model)
    theirs, ours = open_checkpoint(model), open_checkpoint(tmp_path / "model.gguf")
    assert ours.config == theirs.config
    assert ours.weights == theirs.weights
    found = values_of(ours)
    assert found.keys() == held.keys()
    assert all(np.array_equal(found[name].reshape(held[name].shape), held[name]) for name in held)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    rounded = 1e-5 if ours.config.experts or family == "falcon" else 0.0  # sums of another order
    rounded = 1e-4 if family in ROUNDED else rounded
    found = torch_model(ours, torch.float32)(ids).logits
    torch.testing.assert_close(found, expected, atol=rounded, rtol=rounded)


@pytest.mark.parametrize(
    ("family", "as_family", "changes"),
    [
        ("glm4_moe_lite", "deepseek_v3", {}),
        ("solar_open", "glm4_moe", {}),
        ("internlm3", "llama", {}),
        ("iquestcoder", "llama", {}),
        ("granitemoehybrid", "granite", {"num_experts_per_tok": 0} | ROPE),
        ("granitemoehybrid", "granitemoeshared", {"num_local_experts": 4} | ROPE),
    ],
)
def test_a_family_whose_files_call_themselves_another_s_is_that(family, as_family, changes, tmp_path):
    model = save_family(tmp_path / "model", family, **changes)
    write_gguf(tmp_path / "model.gguf", model)
    ours = open_checkpoint(tmp_path / "model.gguf")
    assert ours.raw_config["model_type"] == as_family
    assert as_family in READ_AS[family].split(" or ")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    torch.testing.assert_close(torch_model(ours, torch.float32)(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_mistral3_whose_queries_do_not_grow_is_a_mistral(tmp_path):
    model = save_family(tmp_path / "model", "ministral3", rope_parameters=MINISTRAL_YARN)
    keys = ("attention.temperature_scale", "rope.scaling.yarn_log_multiplier")
    changes = {f"mistral3.{key}": None for key in keys}
    write_gguf(tmp_path / "model.gguf", model, changes=changes)
    assert open_checkpoint(tmp_path / "model.gguf").raw_config["model_type"] == "mistral"


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_files_from_before_keys_and_values_were_taken_apart(family, tmp_path):
    model = save_family(tmp_path / "model", family, rope_parameters=YARN)
    held = write_gguf(tmp_path / "model.gguf", model, before_mla=True)
    theirs, ours = open_checkpoint(model), open_checkpoint(tmp_path / "model.gguf")
    assert (ours.config, ours.weights) == (theirs.config, theirs.weights)
    found = values_of(ours)
    assert all(np.array_equal(found[name], held[name]) for name in held)


def test_layers_that_predict_later_tokens_are_left_out(tmp_path):
    model = save_family(tmp_path / "model", "glm4_moe")
    changes = {"glm4moe.nextn_predict_layers": 1, "glm4moe.block_count": 4}
    later = {f"blk.3.{name}.weight": np.ones(32, np.float32) for name in ("nextn.enorm", "attn_norm")}
    write_gguf(tmp_path / "model.gguf", model, changes=changes, more=later)
    theirs, ours = open_checkpoint(model), open_checkpoint(tmp_path / "model.gguf")
    assert (ours.config, ours.tensors.keys()) == (theirs.config, theirs.tensors.keys())


@pytest.mark.parametrize(
    ("experts", "groups", "expected"), [(160, None, (8, 3)), (64, None, (1, 1)), (160, (4, 2), (4, 2))]
)
def test_groups_that_old_files_do_not_say(experts, groups, expected, tmp_path):
    model = save_family(
        tmp_path / "model",
        "deepseek_v2",
        n_routed_experts=experts,
        n_group=8,
        rope_parameters=YARN,
        hidden_size=8,
    )
    told = dict(zip(("count", "used_count"), groups or (None, None), strict=True))
    changes = {f"deepseek2.expert_group_{name}": value for name, value in told.items()}
    write_gguf(tmp_path / "model.gguf", model, changes=changes)
    found = open_checkpoint(tmp_path / "model.gguf").config.experts
    assert (found.groups, found.groups_kept) == expected


REFUSED = [
    ("deepseek_v3", {"attention.key_length_mla": None}, "attention.key_length_mla.*got nothing"),
    ("deepseek_v3", {"attention.value_length_mla": None}, "attention.value_length_mla.*got nothing"),
    ("deepseek_v3", {"attention.value_length": 9}, "attention.value_length.*got 9, expected 14"),
    ("deepseek_v3", {"attention.kv_lora_rank": None}, "attention.kv_lora_rank.*got nothing"),
    ("deepseek_v3", {"attention.head_count_kv": 2}, "attention.head_count_kv.*got 2, expected 1 or 4"),
    ("deepseek_v3", {"expert_gating_func": 4}, r"expert_gating_func.*got 4, expected 1 \(softmax\) or 2"),
    ("deepseek_v3", {"expert_gating_func": 1, "expert_weights_norm": None}, "does not use.*exp_probs_b"),
    ("deepseek_v2", {"expert_weights_norm": True}, "expert_weights_norm.*got True, expected false"),
    ("deepseek_v3", {"expert_count": 9}, "expert_count.*got 9, expected 8, the rows of the router"),
    ("deepseek_v3", {"leading_dense_block_count": 2}, "3 tensors missing.*layers.1.mlp.down_proj"),
    ("glm4_moe", {"expert_gating_func": 1}, r"expert_gating_func.*got 1, expected 2 \(sigmoid\)"),
    ("afmoe", {"expert_weights_norm": False}, "expert_weights_norm.*got False, expected true"),
    ("afmoe", {"expert_group_count": 2}, "expert_group_count.*got 2, expected 1"),
    ("glm4_moe", {"expert_shared_count": 1}, "wrong shape of .*shared_experts"),
    ("glm4_moe", {"nextn_predict_layers": 3}, "nextn_predict_layers.*got 3, expected fewer"),
    ("gpt_oss", {"expert_feed_forward_length": 9}, "expert_feed_forward_length.*got 9, expected 40"),
    ("gpt_oss", {"rope.scaling.yarn_attn_factor": 2.0}, "yarn_attn_factor.*got 2.0, expected 1.13"),
    ("granite", {"rope.scaling.finetuned": False}, "rope.scaling.finetuned.*got False"),
    ("mpt", {"attention.max_alibi_bias": 0.0}, "attention.max_alibi_bias.*got 0.0"),
    ("gpt2", {"feed_forward_length": 100}, "wrong shape of transformer.h.0.mlp.c_fc.weight"),
    ("falcon", {"tensor_data_layout": "other"}, "tensor_data_layout.*got 'other', expected 'jploski'"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_contradicts_itself_or_is_not_known_has_its_line(family, changes, message, tmp_path):
    sizes = WIDE_GPT2 if family == "gpt2" else WIDE_FALCON | {"bias": False} if family == "falcon" else {}
    model = save_family(tmp_path / "model", family, **sizes)
    path, name = tmp_path / "model.gguf", architecture_name(family)
    write_gguf(path, model, changes={f"{name}.{key}": value for key, value in changes.items()})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_make_one_have_shapes_that_fit(tmp_path):
    model = save_family(tmp_path / "model", "gpt_oss")
    name = "blk.1.ffn_gate_exps.weight"
    write_gguf(tmp_path / "model.gguf", model, drop=(name,), more={name: np.ones((4, 39, 32), np.float32)})
    with pytest.raises(CheckpointError, match=rf"wrong shape of {name} \+ blk.1.ffn_up_exps.weight"):
        open_checkpoint(tmp_path / "model.gguf")


def test_long_factors_come_with_short_ones(tmp_path):
    model = save_family(tmp_path / "model", "phi3", **LONG_ROPE)
    write_gguf(tmp_path / "model.gguf", model, drop=("rope_factors_short.weight",))
    with pytest.raises(CheckpointError, match="got rope_factors_long.weight alone"):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("family", "changes", "kept"),
    [
        ("gpt2", WIDE_GPT2, ("qkv_proj", "o_proj", "up_proj", "down_proj")),
        ("granitemoe", {"intermediate_size": 64}, ("experts.3.gate_up_proj", "experts.3.down_proj")),
        ("deepseek_v3", {"qk_nope_head_dim": 32, "kv_lora_rank": 32, "moe_intermediate_size": 32}, ()),
        ("gpt_oss", {"intermediate_size": 64}, ()),
    ],
)
def test_blocks_of_what_the_converter_puts_otherwise(family, changes, kept, tmp_path):
    model = save_family(tmp_path / "model", family, **changes)
    held = write_gguf(tmp_path / "model.gguf", model, arranged="Q8_0")
    ours = open_checkpoint(tmp_path / "model.gguf")
    assert "Q8_0" in {record.storage for record in ours.tensors.values()}
    found = values_of(ours)
    assert all(np.array_equal(found[name], held[name]) for name in held)
    layer = {weight.name.removeprefix("layers.1."): weight for weight in ours.weights}
    keeps = {name for name, weight in layer.items() if kept_format(weight, ours.tensors) == BLOCKS8}
    assert {f"{name}.weight" for name in kept} <= keeps
    for name in keeps:  # bit for bit, in the order of the weight
        values = kept_integers(layer[name], ours.tensors).values()
        assert np.array_equal(values, read_array(layer[name], ours.tensors))


def test_experts_of_gpt_oss_as_they_lie_in_its_files(tmp_path):
    """Blocks of MXFP4, three tensors a layer: the package's values, woven and turned as transformers has
    them; and a bundle of them is verified.
    """
    model = save_family(tmp_path / "model", "gpt_oss", hidden_size=64, intermediate_size=32, swiglu_limit=7.0)
    held = write_gguf(tmp_path / "model.gguf", model, arranged="MXFP4")
    ours = open_checkpoint(tmp_path / "model.gguf")
    part = ours.tensors["model.layers.1.mlp.experts.gate_up_proj[2]"]
    assert (part.storage, part.shape) == ("MXFP4", (64, 64))
    found = values_of(ours)
    assert all(np.array_equal(found[name], held[name]) for name in held)
    export_bundle(ExportOptions(tmp_path / "model.gguf", tmp_path / "bundle"))
    assert verify(tmp_path / "bundle", tmp_path / "model.gguf").passed


def test_mxfp4_is_the_table_of_its_definition():
    """ggml's: a byte whose value is a power of two less 127, halved; 16 bytes, low halves first."""
    codes = np.arange(16, dtype=np.uint8)
    for exponent in (0, 1, 2, 127, 130):
        block = np.concatenate([[np.uint8(exponent)], codes | codes[::-1] << 4]).astype(np.uint8)
        doubled = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
        expected = np.ldexp(np.array(doubled + doubled[::-1], np.float64), exponent - 128)
        assert np.array_equal(dequantize(block, "MXFP4"), expected)
