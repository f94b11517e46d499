"""The families that can be exported, by the model_type of config.json."""

from firp.export.families.llama import LLAMA
from firp.export.families.mistral import MISTRAL
from firp.export.families.qwen import QWEN2, QWEN3
from firp.export.families.recipe import Family

FAMILIES: dict[str, Family] = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}
