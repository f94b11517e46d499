"""Models for text and more whose text part is a model of its own, and what transformers loads by another
name.

In: model_types of config.json. Out: the modules beside the text model, and names of the table.
"""

_LLAVA = ("vision_tower", "multi_modal_projector", "image_newline")

# model_type -> the modules that text does not pass
WRAPPERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "gemma3", "mistral3", "llava", "llava_next", "llava_onevision", "vipllava", "internvl",
            "got_ocr2",
        ),
        _LLAVA,
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), ("vision_model", "connector")),
    **dict.fromkeys(("qwen2_audio", "voxtral"), ("audio_tower", "multi_modal_projector")),
    **dict.fromkeys(("exaone4_5", "cohere_compass"), ("visual",)),
    "lighton_ocr": ("vision_encoder", "vision_projection"),
    "kimi_k25": ("vision_tower", "mm_projector"),
}  # fmt: skip
# model_type -> the family that transformers, or the model's own code, loads it as
LOADED_AS = {"gpt-sw3": "gpt2", "kimi_k2": "deepseek_v3"}
