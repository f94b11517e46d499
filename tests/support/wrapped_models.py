"""Random tiny models that take images or sounds beside text, as transformers saves them.

In: a model_type of such a model, and of its text part. Out: a checkpoint.
"""

from pathlib import Path
from typing import Any

import torch
from support.family_models import family_config
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

_TOWER = {
    "hidden_size": 16, "embed_dim": 16, "d_model": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "depth": 1, "encoder_layers": 1, "num_attention_heads": 2, "num_heads": 2, "encoder_attention_heads": 2,
    "num_key_value_heads": 2, "encoder_ffn_dim": 16, "image_size": 28, "patch_size": 14, "head_dim": 8,
}  # fmt: skip


def save_wrapped(folder: Path, model_type: str, text: str, **changes: Any) -> Any:
    """A random model; returns it. changes: of the fields of its text part."""
    torch.manual_seed(0)
    kind = CONFIG_MAPPING[model_type]
    tower = "audio_config" if "audio_config" in kind.sub_configs else "vision_config"
    inner = family_config(text, **changes)
    own = {"vision_feature_layer": -1, "tie_word_embeddings": inner.tie_word_embeddings}
    known = CONFIG_MAPPING[kind().to_dict()[tower]["model_type"]]().to_dict()
    small = {name: value for name, value in _TOWER.items() if name in known}
    config = kind(**own, text_config=inner.to_dict(), **{tower: known | small})
    mappings = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    model = next(mapping[kind] for mapping in mappings if kind in mapping)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model
