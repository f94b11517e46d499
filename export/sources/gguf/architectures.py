"""Architectures of GGUF files: what Hugging Face calls them, and how llama.cpp's converter writes them.

In: the keys of a file, and its tensors. Out: its row of the table.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from firp.export.sources.gguf import arranged
from firp.export.sources.gguf.arranged import Arranged
from firp.export.sources.gguf.fields import dense, experts, latent, plain
from firp.export.sources.gguf.fields.common import SHARED_SIZE, WINDOW, Further, Tensors, rms
from firp.export.sources.gguf.metadata import Metadata


class GgufArchitecture(NamedTuple):
    """One of them."""

    model_type: str
    further: Further = rms  # the fields that not all have
    paired: bool = False  # the converter moved rows of queries and keys: see `renamed`
    one_more: bool = False  # the converter added 1 to the weights of norms
    partial: bool = False  # some features of a head may not be turned
    latent: bool = False  # keys and values are those of latent rows
    unturned: bool = False  # positions are learned, or added to scores
    arranged: Mapping[str, Arranged] = {}  # tensors that the converter put otherwise


_Row = GgufArchitecture
_DEEPSEEK = {"latent": True, "arranged": arranged.LATENT}

ARCHITECTURES = {
    "llama": _Row("llama", paired=True),
    "qwen2": _Row("qwen2"),
    "qwen3": _Row("qwen3"),
    "qwen2moe": _Row("qwen2_moe", experts.qwen2_moe),
    "qwen3moe": _Row("qwen3_moe", experts.qwen_moe),
    "mistral3": _Row("mistral", dense.mistral3, paired=True),
    "gpt-oss": _Row("gpt_oss", experts.gpt_oss, arranged=arranged.GPT_OSS),
    "deepseek2": _Row("deepseek_v2", latent.deepseek_v2, **_DEEPSEEK),
    "glm4moe": _Row("glm4_moe", experts.glm4_moe, partial=True, arranged=arranged.SELECTION),
    "minimax-m2": _Row("minimax_m2", experts.minimax_m2, partial=True, arranged=arranged.MINIMAX),
    "granite": _Row("granite", dense.dense_granite, paired=True),
    "granitemoe": _Row("granitemoe", experts.granite_moe, paired=True, arranged=arranged.GRANITE_MOE),
    "smollm3": _Row("smollm3", dense.smollm3, paired=True),
    "command-r": _Row("cohere", dense.cohere),
    "cohere2": _Row("cohere2", dense.cohere2),
    "gemma": _Row("gemma", dense.gemma, one_more=True),
    "gemma2": _Row("gemma2", dense.gemma2_capped, one_more=True),
    "gemma3": _Row("gemma3_text", dense.gemma3, one_more=True),
    "olmo": _Row("olmo", dense.olmo, paired=True),
    "olmo2": _Row("olmo2"),
    "olmoe": _Row("olmoe", experts.olmoe),
    "phi2": _Row("phi", plain.phi, partial=True),
    "phi3": _Row("phi3", dense.phi3, partial=True),
    "phimoe": _Row("phimoe", experts.phimoe),
    "starcoder": _Row("gpt_bigcode", plain.gpt_bigcode, unturned=True),
    "starcoder2": _Row("starcoder2", plain.starcoder2),
    "stablelm": _Row("stablelm", dense.stablelm, partial=True),
    "nemotron": _Row("nemotron", plain.nemotron, one_more=True, partial=True),
    "chatglm": _Row("glm", partial=True),
    "glm4": _Row("glm4", partial=True),
    "seed_oss": _Row("seed_oss", dense.seed_oss),
    "arcee": _Row("arcee", plain.arcee, paired=True),
    "apertus": _Row("apertus", dense.apertus, arranged=arranged.APERTUS),
    "afmoe": _Row("afmoe", experts.afmoe, arranged=arranged.AFMOE),
    "ernie4_5": _Row("ernie4_5", dense.ernie),
    "ernie4_5-moe": _Row("ernie4_5_moe", experts.ernie_moe, arranged=arranged.ERNIE),
    "hunyuan-dense": _Row("hunyuan_v1_dense"),
    "hunyuan-moe": _Row("hunyuan_v1_moe", experts.hunyuan_moe),
    "exaone": _Row("exaone"),
    "exaone4": _Row("exaone4", dense.exaone4),
    "exaone-moe": _Row("exaone_moe", experts.exaone_moe, arranged=arranged.EXAONE_MOE),
    "dots1": _Row("dots1", experts.dots1, arranged=arranged.SELECTION),
    "minicpm3": _Row("minicpm3", latent.minicpm3, latent=True),
    "jais2": _Row("jais2", plain.jais2),
    "dbrx": _Row("dbrx", experts.dbrx, arranged=arranged.DBRX),
    "falcon": _Row("falcon", plain.falcon, arranged=arranged.GROUPED),
    "gpt2": _Row("gpt2", plain.gpt2, unturned=True, arranged=arranged.GPT2),
    "gptneox": _Row("gpt_neox", plain.gpt_neox, partial=True, arranged=arranged.NEOX),
    "bloom": _Row("bloom", plain.bloom, unturned=True, arranged=arranged.GROUPED),
    "mpt": _Row("mpt", plain.mpt, unturned=True),
}


def _says(key: str) -> Callable[[Metadata, Tensors], bool]:
    return lambda data, tensors: data.says(key)


# of files that call themselves another's: the architecture, and what tells them apart
_OTHERS: tuple[tuple[str, Callable[[Metadata, Tensors], bool], GgufArchitecture], ...] = (
    ("llama", _says("expert_count"), _Row("mixtral", experts.mixtral, paired=True)),
    ("llama", _says(WINDOW), _Row("mistral", dense.mistral, paired=True)),
    ("mistral3", _says("attention.temperature_scale"), _Row("ministral3", dense.ministral3, paired=True)),
    ("olmo2", _says(WINDOW), _Row("olmo3", dense.olmo3)),
    (
        "granitemoe",
        _says(SHARED_SIZE),
        _Row("granitemoeshared", experts.granite_moe_shared, paired=True, arranged=arranged.GRANITE_MOE),
    ),
    ("deepseek2", lambda data, _: not data.says("expert_count"), _Row("youtu", latent.youtu, **_DEEPSEEK)),
    ("deepseek2", latent.is_sigmoid, _Row("deepseek_v3", latent.deepseek_v3, **_DEEPSEEK)),
)
MODEL_TYPES = {row.model_type for row in (*ARCHITECTURES.values(), *(row for _, _, row in _OTHERS))}
# families whose files are those of another, which computes the same
READ_AS = {
    "internlm3": "llama",
    "iquestcoder": "llama",
    "glm4_moe_lite": "deepseek_v3",
    "solar_open": "glm4_moe",
    "granitemoehybrid": "granite or granitemoeshared",
}
# why files of the others are not read
LEFT_OUT = {
    **dict.fromkeys(("granite_swa", "granitemoe_swa", "hy_v3", "mellum"), "unknown to gguf 0.19"),
    "gptj": "llama.cpp has no graph of it",
    **dict.fromkeys(
        (
            "apertus1p5_text", "biogpt", "codegen", "cohere_compass_text", "cwm", "flex_olmo", "flint",
            "gpt_neo", "helium", "hyperclovax", "ministral", "nanochat", "opt", "persimmon", "sarvam_mla",
            "vaultgemma",
        ),
        "unknown to llama.cpp",
    ),
}  # fmt: skip


def architecture_of(data: Metadata, tensors: Tensors) -> GgufArchitecture:
    """The row of a file; Mistral's files call themselves Llama's, and have a window."""
    for architecture, fits, row in _OTHERS:
        if data.architecture == architecture and fits(data, tensors):
            return row
    return ARCHITECTURES[data.architecture]
