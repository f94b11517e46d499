"""Families that attend to latent rows.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json.
"""

from firp.export.sources.gguf.fields.common import SIGMOID, SOFTMAX, Fields, Tensors, gate, rms, same
from firp.export.sources.gguf.fields.experts import routed
from firp.export.sources.gguf.metadata import Metadata

_KEY, _VALUE = "attention.key_length", "attention.value_length"
_QUERY_RANK = "attention.q_lora_rank"
_SHARE_OF_A_LOGARITHM = 0.1  # that the converter multiplies mscale_all_dim by
# Groups that experts are in, and those of them that are chosen from, of models by their number of
# experts: files from before llama.cpp knew of groups do not say them
_GROUPS = {160: (8, 3), 256: (8, 4)}  # DeepSeek-V2, DeepSeek-V3
_MINICPM3 = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}  # which no file says


def is_sigmoid(data: Metadata, tensors: Tensors) -> bool:
    """Whether experts are scored as DeepSeek-V3 does it, which has a bias for each too."""
    biased = any(name.endswith("exp_probs_b.bias") for name in tensors)
    return gate(data, SIGMOID if biased else SOFTMAX, SOFTMAX, SIGMOID) == SIGMOID


def latent(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    """Sizes of latent rows, as every such family calls them."""
    heads, rank, turned = c["num_attention_heads"], data.integer("attention.kv_lora_rank"), c["head_dim"]
    if "blk.0.attn_k_b.weight" in tensors:
        key, value = data.integer(f"{_KEY}_mla"), data.integer(f"{_VALUE}_mla")
        for name, size in ((_KEY, rank + turned), (_VALUE, rank)):
            same(data, name, size)
    else:
        key, value = data.integer(_KEY), data.integer(_VALUE, c["hidden_size"] // heads)
        key, value = data.integer(f"{_KEY}_mla", key), data.integer(f"{_VALUE}_mla", value)
    if key <= turned:
        raise data.bad(_KEY, key, f"more than {turned}, the features that turn")
    if c["num_key_value_heads"] not in (1, heads):
        raise data.bad("attention.head_count_kv", c["num_key_value_heads"], f"1 or {heads}")
    return rms(data, tensors, c) | {
        "num_key_value_heads": heads,
        "kv_lora_rank": rank,
        "q_lora_rank": data.integer(_QUERY_RANK) if data.has(_QUERY_RANK) else None,
        "qk_nope_head_dim": key - turned,
        "qk_rope_head_dim": turned,
        "v_head_dim": value,
        "rope_interleave": True,
        "rope_parameters": _rope(data, c),
    }


def _rope(data: Metadata, c: Fields) -> Fields:
    share = data.number("rope.scaling.yarn_log_multiplier", 0.0) / _SHARE_OF_A_LOGARITHM
    share = float(f"{share:.6g}")
    return c["rope_parameters"] | ({"mscale": share, "mscale_all_dim": share} if share else {})


def _grouped(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    found = latent(data, tensors, c) | routed(data, tensors, c)
    if not data.has("expert_group_count"):
        found["n_group"], found["topk_group"] = _GROUPS.get(found["n_routed_experts"], (1, 1))
    return found


def deepseek_v2(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    found = _grouped(data, tensors, c)
    if found["norm_topk_prob"]:
        raise data.bad("expert_weights_norm", True, "false, beside a softmax")
    method = "greedy" if found["n_group"] == 1 else "group_limited_greedy"
    return found | {"topk_method": method}


def deepseek_v3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    return _grouped(data, tensors, c)


def youtu(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    same(data, "leading_dense_block_count", c["num_hidden_layers"])
    same(data, "expert_feed_forward_length", c["intermediate_size"])
    data.ignore("expert_shared_count")
    return latent(data, tensors, c)


def minicpm3(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    found = latent(data, tensors, c) | _MINICPM3 | {"rope_interleave": False}
    if found["rope_parameters"]["rope_type"] == "longrope":
        found["rope_parameters"]["original_max_position_embeddings"] = c["max_position_embeddings"]
    return found
