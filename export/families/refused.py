"""Architectures that cannot be exported, and why.

In: a model_type that is not in the table. Out: the error for it, with what is missing and the nearest
that is supported.
"""

import difflib
from typing import Any

from firp.export.families.table import FAMILIES
from firp.runtime.errors import CheckpointError

_RECURRENT = "layers with a recurrent state"
_VISION = "inputs that are no text"
_EXPERTS = "a router of experts of its own kind"
_REMOTE = "code that is not part of transformers"
_ENCODER = "an encoder"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "nemotron_h", "qwen3_5",
         "qwen3_5_text", "qwen3_next", "kimi_linear", "lfm2", "lfm2_moe", "recurrent_gemma", "rwkv", "xlstm",
         "zamba", "zamba2", "olmo_hybrid", "minimax"), _RECURRENT,
    ),
    **dict.fromkeys(
        ("gemma3", "gemma3n", "gemma4", "mistral3", "mistral4", "llama4", "mllama", "phi4_multimodal",
         "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "paligemma", "internvl", "fuyu"), _VISION,
    ),
    **dict.fromkeys(
        ("jetmoe", "llama4_text", "kolibri1", "cohere2_moe"), _EXPERTS,
    ),
    **dict.fromkeys(
        ("internlm2", "internlm", "baichuan", "chatglm", "qwen", "minicpm", "phi3small", "openelm",
         "deepseek", "xverse", "orion"), _REMOTE,
    ),
    **dict.fromkeys(("t5", "bart", "mbart", "bert", "whisper", "pegasus", "marian"), _ENCODER),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa"), "attention to tokens that are chosen"),
    "axk1": "a norm of experts alone",
    "longcat_flash": "two attentions a layer",
    "gemma4_text": "layers of different head sizes",
    "gemma3n_text": "embeddings of each layer",
    "bitnet": "ternary weights",
}  # fmt: skip


def refusal(model_type: Any, architecture: Any) -> CheckpointError:
    """The error for a model of a family that is not in the table."""
    known = [model_type] if isinstance(model_type, str) else []
    if not known and isinstance(architecture, str):
        known = [architecture.lower().removesuffix("forcausallm")]
    missing = f", which needs {REFUSED[known[0]]}" if known and known[0] in REFUSED else ""
    nearest = difflib.get_close_matches(known[0], FAMILIES, 1, 0.0)[0] if known else "llama"
    got = f"model_type {model_type!r:.60}" + (f" ({architecture!r:.60})" if architecture else "")
    return CheckpointError(
        "unsupported architecture",
        got=got + missing,
        expected=f"one of {len(FAMILIES)} families, the nearest {nearest}",
        fix="firp families lists them",
    )
