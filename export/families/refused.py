"""Architectures that cannot be exported, and why.

In: a model_type that is not in the table. Out: the error for it, with what is missing and a family that
is supported and shares the rest.
"""

from typing import Any

from firp.export.families.table import FAMILIES
from firp.runtime.errors import CheckpointError

_RECURRENT = "layers with a recurrent state"
_MORE = "inputs that are no text"
_EXPERTS = "a router of experts of its own kind"
_REMOTE = "code that is not part of transformers"
_ENCODER = "an encoder"
_BOTH_WAYS = "attention to tokens that come later"
_CHOSEN = "attention to tokens that are chosen"
_ATTENTION = "attention of its own kind"
_SIZES = "layers of different head sizes"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "nemotron_h", "qwen3_5",
         "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text",
         "kimi_linear", "bailing_hybrid", "lara_mini", "lfm2", "lfm2_moe", "lfm3", "recurrent_gemma", "rwkv",
         "xlstm", "zamba", "zamba2", "zaya", "olmo_hybrid", "minimax", "inkling_text",
         "inkling2_text"), _RECURRENT,
    ),
    **dict.fromkeys(
        ("gemma3n", "gemma4", "gemma4_unified", "llama4", "mllama", "phi4_multimodal", "qwen2_vl",
         "qwen2_5_vl", "qwen3_vl", "paligemma", "fuyu", "git", "emu3", "moshi", "musicgen",
         "musicgen_melody", "moss_transcribe_diarize", "dots3_note"), _MORE,
    ),
    **dict.fromkeys(("jetmoe", "llama4_text", "kolibri1", "cohere2_moe", "aria_text", "mistral4"), _EXPERTS),
    **dict.fromkeys(
        ("internlm2", "internlm", "baichuan", "chatglm", "qwen", "minicpm", "phi3small", "openelm",
         "deepseek", "xverse", "orion", "internvl_chat"), _REMOTE,
    ),
    **dict.fromkeys(
        ("t5", "bart", "mbart", "whisper", "pegasus", "marian", "bigbird_pegasus", "blenderbot",
         "blenderbot-small", "mvp", "plbart", "prophetnet", "trocr", "gemma4_assistant",
         "gemma4_unified_assistant"), _ENCODER,
    ),
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
         "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm",
         "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"), _BOTH_WAYS,
    ),
    **dict.fromkeys(
        ("deepseek_v32", "deepseek_v4", "glm_moe_dsa", "hy_v4", "axk2", "dots3_note_text",
         "minimax_m3_vl_text"), _CHOSEN,
    ),
    **dict.fromkeys(("diffllama", "doge", "reformer", "cpmant", "beam"), _ATTENTION),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text", "mimo_v2_flash"), _SIZES),
    **dict.fromkeys(("dory", "hrm_text", "inkling2_loop_text"), "layers that run more than once"),
    **dict.fromkeys(("xglm", "ctrl"), "positions that are sines"),
    "openai-gpt": "norms after each residual sum",
    "laguna": "layers of different numbers of heads",
    "gpt_neox_japanese": "a bias after attention",
    "modernbert-decoder": "a first layer without a norm",
    "sarvam_moe": "queries, keys and values in one tensor that transformers takes apart",
    "axk1": "a norm of experts alone",
    "longcat_flash": "two attentions a layer",
    "gemma3n_text": "embeddings of each layer",
    "blt": "bytes in place of tokens",
    "bitnet": "ternary weights",
}  # fmt: skip
# A family that shares the rest with a refused one. No other is near.
NEAREST = {
    **dict.fromkeys(("qwen3_5", "qwen3_5_text"), "qwen3"),
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp_text"), "qwen3_moe"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "qwen2"),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text", "gemma3n_text"), "gemma3_text"),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "kimi_linear", "axk1", "longcat_flash"), "deepseek_v3"),
    **dict.fromkeys(("internlm2", "internlm", "baichuan", "xverse", "orion", "bitnet", "diffllama"), "llama"),
    **dict.fromkeys(("jamba", "llama4_text"), "mixtral"),
    "qwen3_vl": "qwen3",
    "mistral4": "deepseek_v3",
    "beam": "afmoe",
    "laguna": "afmoe",
    "sarvam_moe": "glm4_moe",
    "gpt_neox_japanese": "gpt_neox",
    "glm_moe_dsa": "glm4_moe_lite",
    "hy_v4": "hy_v3",
    "minimax": "minimax_m2",
    "minimax_m3_vl_text": "minimax_m2",
    "cohere2_moe": "cohere2",
    "olmo_hybrid": "olmo3",
    "recurrent_gemma": "gemma",
    "paligemma": "gemma",
    "phi4_multimodal": "phi3",
    "phi3small": "phi3",
    "fuyu": "persimmon",
    "minicpm": "minicpm3",
    "openai-gpt": "gpt2",
    "xglm": "opt",
}


def refusal(model_type: Any, architecture: Any) -> CheckpointError:
    """The error for a model of a family that is not in the table."""
    known = model_type if isinstance(model_type, str) else ""
    if not known and isinstance(architecture, str):
        known = architecture.lower().removesuffix("forcausallm")
    missing = f", which needs {REFUSED[known]}" if known in REFUSED else ""
    nearest = f", of which {NEAREST[known]} shares the rest" if known in NEAREST else ""
    got = f"model_type {model_type!r:.60}" + (f" ({architecture!r:.60})" if architecture else "")
    return CheckpointError(
        "unsupported architecture",
        got=got + missing,
        expected=f"one of {len(FAMILIES)} families" + nearest,
        fix="firp families lists them",
    )
