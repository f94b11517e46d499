"""Model directories, whole and broken: every way to be wrong has its own message, and no tensor
goes unused.
"""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.family_models import save_family
from support.small_models import make_model

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.weights.stream import from_checkpoint, read_chunks, write_safetensors
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import CheckpointError, FirpError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("checkpoint") / "model", "llama_untied_biases")


@pytest.fixture
def model(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit_config(model, **changes):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def edit_header(model, change):
    """Change the safetensors header and leave the data as they are."""
    content = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def test_sharded_and_single_file_give_the_same_bundle(tmp_path):
    single = make_model(tmp_path / "single", "qwen2", torch.bfloat16)
    sharded = make_model(tmp_path / "sharded", "qwen2", torch.bfloat16, max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    first = export_bundle(ExportOptions(single, tmp_path / "a"))
    second = export_bundle(ExportOptions(sharded, tmp_path / "b"))
    assert first.files["model.safetensors"] == second.files["model.safetensors"]


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_dtype_conversion_rounds_as_torch_does(source, target, tmp_path):
    model = make_model(tmp_path / "model", "llama", source)
    checkpoint = open_checkpoint(model)
    weight = next(weight for weight in checkpoint.weights if weight.name == "layers.1.qkv_proj.weight")
    write_safetensors(tmp_path / "out.safetensors", [from_checkpoint(weight, checkpoint.tensors)], target)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        written = file.get_tensor("layers.1.qkv_proj.weight")
    tensors = load_file(model / "model.safetensors")
    expected = torch.cat([tensors[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"]).to(
        getattr(torch, target)
    )
    assert torch.equal(written, expected)


def test_a_value_beyond_float16_is_an_error(model, tmp_path):
    edit_weights(model, lambda t: t["model.layers.0.mlp.up_proj.weight"].view(-1)[3:4].fill_(1e6))
    with pytest.raises(CheckpointError, match="does not fit float16"):
        export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="float16"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_named(value, dtype, tmp_path):
    model = make_model(tmp_path / "model", "llama", dtype)
    edit_weights(model, lambda t: t["model.layers.2.self_attn.o_proj.weight"].view(-1)[-1:].fill_(value))
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.o_proj\.weight holds NaN or infinity"):
        export_bundle(ExportOptions(model, tmp_path / "bundle"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_missing_tensor_is_named(model):
    edit_weights(model, lambda t: t.pop("model.layers.3.mlp.gate_proj.bias"))
    with pytest.raises(CheckpointError, match=r"1 tensors missing.*model\.layers\.3\.mlp\.gate_proj\.bias"):
        open_checkpoint(model)


def test_unused_tensor_is_named(model):
    edit_weights(model, lambda t: t.update({"model.layers.0.self_attn.sinks": torch.zeros(4)}))
    with pytest.raises(CheckpointError, match=r"does not use.*self_attn\.sinks"):
        open_checkpoint(model)


def test_layers_that_transformers_leaves_out_are_left_out(tmp_path):
    """Of Mellum, the layers that predict several tokens; other families have no such tensors."""
    model = save_family(tmp_path / "mellum", "mellum")
    edit_weights(model, lambda t: t.update({"mtp.norm.weight": torch.ones(32)}))
    assert "MellumForCausalLM" in open_checkpoint(model).config.architecture
    model = save_family(tmp_path / "llama", "llama")
    edit_weights(model, lambda t: t.update({"mtp.norm.weight": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"does not use.*mtp\.norm"):
        open_checkpoint(model)


def test_experts_that_do_not_divide_are_named(tmp_path):
    model = save_family(tmp_path / "model", "granitemoe")
    name = "model.layers.1.block_sparse_moe.input_linear.weight"
    edit_weights(model, lambda t: t.update({name: t[name][1:].clone()}))
    with pytest.raises(CheckpointError, match=rf"wrong shape of {name}.*\(4, 80, 32\).*each of 5 experts"):
        open_checkpoint(model)


def test_wrong_shape_is_named(model):
    edit_weights(model, lambda t: t.update({"model.norm.weight": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"wrong shape of model\.norm\.weight.*\(32,\).*\[64\]"):
        open_checkpoint(model)


def test_tied_head_that_differs_is_an_error_and_an_equal_one_is_not(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    edit_weights(model, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" in open_checkpoint(model).tensors
    edit_weights(model, lambda t: t["lm_head.weight"].view(-1)[0:1].add_(1))
    with pytest.raises(CheckpointError, match="tie_word_embeddings is true"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda m: (m / "config.json").unlink(), "not a model"),
        (lambda m: (m / "config.json").write_text("{"), "cannot read JSON"),
        (lambda m: (m / "config.json").write_text("[1]"), "expected a JSON object"),
        (
            lambda m: edit_config(m, architectures=["GPT2LMHeadModel"]),
            "architecture and model_type disagree.*GPT2LM",
        ),
        (lambda m: edit_config(m, architectures=None, model_type="bert"), "unsupported architecture.*'bert'"),
        (
            lambda m: edit_config(m, architectures=["Qwen2ForCausalLM"]),
            "architecture and model_type disagree",
        ),
        (
            lambda m: edit_config(m, quantization_config={"quant_method": "gptq"}),
            "no packed weights.*gptq",
        ),
        (lambda m: edit_config(m, quantization_config=True), "quantized checkpoint"),
        (lambda m: edit_config(m, architectures=5), "architecture and model_type disagree.*got 5"),
        (
            lambda m: edit_config(m, architectures="LlamaForCausalLM", model_type="bert"),
            "unsupported architecture.*'bert'.*tokens that come later.*firp families",
        ),
        (
            lambda m: edit_config(m, model_type="qwen3_next"),
            "unsupported architecture.*qwen3_next.*a recurrent state.*of which qwen3_moe shares the rest",
        ),
        (
            lambda m: edit_config(m, architectures=None, model_type="unheard"),
            "unsupported architecture . got model_type 'unheard', expected one of [0-9]+ families. Fix",
        ),
        (lambda m: edit_config(m, hidden_act="mish"), "unsupported activation.*mish"),
        (lambda m: edit_config(m, rms_norm_eps=1e400), "bad epsilon of norms"),
        (lambda m: edit_config(m, num_hidden_layers=10**7), "bad num_hidden_layers.*got 10000000"),
        (
            lambda m: [edit_config(m, eos_token_id=[500]), (m / "generation_config.json").unlink()],
            "bad eos_token_id in .*config",
        ),
        (
            lambda m: (m / "generation_config.json").write_text("[]"),
            "bad eos_token_id in .*generation_config.json",
        ),
        (lambda m: (m / "generation_config.json").write_text('{"eos_token_id": -1}'), "bad eos_token_id"),
        (lambda m: (m / "config.json").write_text("[" * 100_000), "cannot read JSON"),
        (lambda m: edit_config(m, hidden_size=0), "bad"),
        (lambda m: edit_config(m, num_hidden_layers=1), "too few layers"),
        (lambda m: edit_config(m, num_hidden_layers=5), "9 tensors missing|tensors missing"),
        (lambda m: edit_config(m, num_hidden_layers=3), "does not use"),
        (
            lambda m: edit_config(
                m,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "short_factor": [1.0] * 5,
                    "long_factor": [2.0] * 5,
                },
            ),
            "bad rope parameters",
        ),
        (lambda m: (m / "model.safetensors").unlink(), "no weights"),
        (
            lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-100]),
            "truncated",
        ),
        (lambda m: (m / "model.safetensors").write_bytes(b"1234"), "truncated"),
        (
            lambda m: (m / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"garbage!"),
            "not a safetensors file",
        ),
        (lambda m: edit_header(m, lambda h: h.clear()), "truncated weight file"),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(data_offsets=[0, 256])),
            "bad place of",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(data_offsets=[-256, 0])),
            "not a safetensors file",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(data_offsets=[0])),
            "not a safetensors file",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(data_offsets=["0", "256"])),
            "not a safetensors file",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(shape="abc")),
            "not a safetensors file",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(dtype=["F32"])),
            "unsupported dtype",
        ),
        (
            lambda m: edit_header(m, lambda h: h["model.norm.weight"].update(dtype="I32")),
            "unsupported dtype of model.norm.*I32",
        ),
        (lambda m: shutil.rmtree(m), "no such model"),
    ],
)
def test_each_broken_directory_has_its_message(model, break_it, message):
    break_it(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"head_dim": 1}, "bad head_dim in '.*config.json' . got 1, expected an even number"),
        ("qwen3", {"head_dim": 3}, "bad head_dim in '.*config.json' . got 3, expected an even number"),
        (
            "llama",
            {"max_position_embeddings": 1},
            "bad max_position_embeddings.* got 1, expected at least 16",
        ),
        ("llama", {"max_position_embeddings": 15}, "bad max_position_embeddings.* got 15"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 4, "use_sliding_window": True, "sliding_window": None},
            "sliding window of no size . got sliding_window null.*Fix: set sliding_window",
        ),
        (
            "mistral",
            {"sliding_window": 0},
            "bad sliding_window in '.*config.json' . got 0, expected at least 2",
        ),
        (
            "mistral",
            {"sliding_window": 1},
            "bad sliding_window in '.*config.json' . got 1, expected at least 2",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(family, changes, message, tmp_path):
    model = make_model(tmp_path / "model", family)
    edit_config(model, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(ExportOptions(model, tmp_path / "bundle"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {"max_position_embeddings": 16}), ("mistral", {"sliding_window": 2})]
)
def test_the_least_that_works_is_verified(family, changes, tmp_path):
    model = make_model(tmp_path / "model", family)
    edit_config(model, **changes)
    export_bundle(ExportOptions(model, tmp_path / "bundle"))
    assert verify(tmp_path / "bundle", model).passed


@pytest.mark.parametrize(
    "index", ["[]", "null", '{"weight_map": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../x"}}']
)
def test_an_index_that_is_none_or_leads_outside_is_refused(model, index):
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="bad weight index"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": float("inf")},
        {"rope_type": "default", "rope_theta": None},
    ],
)
def test_rope_that_makes_no_numbers_is_refused(model, rope, tmp_path):
    edit_config(model, rope_parameters=rope)
    with pytest.raises(CheckpointError, match="rope|bad model configuration"):
        export_bundle(ExportOptions(model, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_hugging_face_cache_links_are_followed(model, tmp_path):
    (tmp_path / "blobs").mkdir()
    for file in list(model.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(f"../blobs/{file.name}")
    manifest = export_bundle(ExportOptions(model, tmp_path / "bundle"))
    assert not any(path.is_symlink() for path in (tmp_path / "bundle").iterdir())
    assert manifest.files


def test_end_of_sequence_ids(model):
    edit_config(model, eos_token_id=7)
    (model / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert open_checkpoint(model).eos_token_ids == (3, 4)
    (model / "generation_config.json").write_text("{}")
    assert open_checkpoint(model).eos_token_ids == (7,)


def test_missing_and_truncated_shards(tmp_path):
    model = make_model(tmp_path / "model", "llama", max_shard_size="100KB")
    shard = sorted(model.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"truncated weight file.*{shard.name}"):
        open_checkpoint(model)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"missing shard.*{shard.name}"):
        open_checkpoint(model)


def test_layers_of_an_unknown_kind_are_refused(tmp_path):
    model = make_model(tmp_path / "model", "qwen2")
    edit_config(model, layer_types=["full_attention", "chunked_attention"] * 2)
    with pytest.raises(CheckpointError, match="unsupported kind of layer.*chunked_attention"):
        open_checkpoint(model)


def test_chunks_are_small_whatever_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("firp.export.weights.stream._CHUNK_BYTES", 256)
    model = make_model(tmp_path / "model", "llama", torch.bfloat16)
    record = open_checkpoint(model).tensors["model.embed_tokens.weight"]
    chunks = list(read_chunks("embedding", record))
    assert max(chunk.nbytes for chunk in chunks) == 256
    whole = np.concatenate(chunks).reshape(record.shape)
    assert whole.dtype == ml_dtypes.bfloat16
    expected = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(torch.from_numpy(whole.astype(np.float32)), expected.float())


@pytest.mark.parametrize("named", [None, [], "LlamaForCausalLM"])
def test_a_known_model_type_needs_no_architecture(model, named):
    whole = open_checkpoint(model)
    edit_config(model, architectures=named)
    assert open_checkpoint(model).config == whole.config


def test_weights_are_those_of_the_table(model):
    checkpoint = open_checkpoint(model)
    assert {weight.name: weight.shape for weight in checkpoint.weights} == weight_shapes(checkpoint.config)


def test_errors_are_firp_errors():
    assert issubclass(CheckpointError, FirpError)
