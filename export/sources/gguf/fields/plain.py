"""Dense families whose MLPs have no gate.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json.
"""

from firp.export.sources.gguf.fields.common import Fields, Tensors, epsilon, optional, rms
from firp.export.sources.gguf.metadata import Metadata

_STARCODER2_WINDOW = 4096  # of every layer of every StarCoder 2; files do not say it
_ACTIVATION = ("hidden_act", "activation_function")  # what configurations call it
_NEOX_20B_LAYERS = 44  # GPT-NeoX 20B's, whose GELU is another than Pythia's; files do not say it


def phi(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {"layer_norm_eps": epsilon(data), "hidden_act": "gelu_new", "qk_layernorm": False}


def starcoder2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "norm_epsilon": epsilon(data),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": c["attention_bias"],
        "sliding_window": None,
        "max_position_embeddings": min(c["max_position_embeddings"], _STARCODER2_WINDOW),
    }


def arcee(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return rms(data, tensors, c) | {"hidden_act": "relu2", "mlp_bias": "blk.0.ffn_up.bias" in tensors}


def nemotron(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    data.ignore("attention.layer_norm_rms_epsilon")  # the same number, by another name
    return {"norm_eps": epsilon(data), "hidden_act": "relu2"}


def jais2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": epsilon(data),
        "hidden_act": "relu2",
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def gpt2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_epsilon": epsilon(data),
        **dict.fromkeys(_ACTIVATION, "gelu_new"),
        "n_inner": c["intermediate_size"],
        "n_positions": c["max_position_embeddings"],
    }


def gpt_bigcode(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    shared = c["num_key_value_heads"] == 1
    activation = dict.fromkeys(_ACTIVATION, "gelu_pytorch_tanh")  # where models differ, llama.cpp's
    return gpt2(data, tensors, c) | activation | {"multi_query": shared}


def gpt_neox(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_eps": epsilon(data),
        "use_parallel_residual": data.flag("use_parallel_residual"),
        "hidden_act": "gelu_fast" if c["num_hidden_layers"] == _NEOX_20B_LAYERS else "gelu",
        "attention_bias": "blk.0.attn_qkv.bias" in tensors,
    }


def bloom(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return {
        "layer_norm_epsilon": epsilon(data),
        "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "seq_length": c["max_position_embeddings"],
    }


def falcon(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    if data.text("tensor_data_layout", "jploski") != "jploski":
        raise data.bad("tensor_data_layout", data.text("tensor_data_layout", ""), "'jploski'")
    return {
        "layer_norm_epsilon": epsilon(data),
        **dict.fromkeys(("hidden_act", "activation"), "gelu"),
        "head_dim": None,
        "ffn_hidden_size": c["intermediate_size"],
        "num_kv_heads": c["num_key_value_heads"],
        "bias": "blk.0.attn_qkv.bias" in tensors,
        "new_decoder_architecture": True,  # of which Falcon 7B is a case: its heads share their keys
        "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in tensors else 1,
    }


def mpt(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    bias = data.number("attention.max_alibi_bias")
    if not bias or bias % 1:
        raise data.bad("attention.max_alibi_bias", bias, "a whole number: positions that are no weights")
    if c["intermediate_size"] % c["hidden_size"]:
        raise data.bad("feed_forward_length", c["intermediate_size"], "a multiple of embedding_length")
    return {
        "layer_norm_epsilon": epsilon(data),
        "d_model": c["hidden_size"],
        "n_heads": c["num_attention_heads"],
        "n_layers": c["num_hidden_layers"],
        "max_seq_len": c["max_position_embeddings"],
        "expansion_ratio": c["intermediate_size"] // c["hidden_size"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(bias),
            "clip_qkv": optional(data, "attention.clamp_kqv"),
        },
    }
