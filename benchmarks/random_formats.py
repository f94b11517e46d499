"""What other tools want beside, or instead of, a checkpoint of `random_model.py`: a tokenizer, a GGUF
file.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


def make_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer beside a checkpoint, for tools that insist on one: a token for every byte, and
    words that no text has for the other ids.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"<{place}>" for place in range(vocab_size - len(letters))]
    tokenizer = Tokenizer(
        BPE({token: place for place, token in enumerate([*words[:3], *letters, *words[3:]])}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def make_small_experts(folder: Path) -> None:
    """Give a checkpoint of gpt-oss experts of float4 with a scale for each 32, as those on the hub
    have, which is the only kind that onnxruntime-genai quantizes: noise of about the size of the other.
    """
    random = np.random.default_rng(0)
    files = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = load_file(shard)
        for name in [name for name in tensors if name.endswith("_proj")]:
            experts, inputs, outputs = tensors.pop(name).shape
            groups = (experts, outputs, inputs // 32)
            tensors[f"{name}_blocks"] = random.integers(0, 256, (*groups, 16), np.uint8)
            tensors[f"{name}_scales"] = np.full(groups, 127 - 7, np.uint8)  # 2**-7, root mean square 0.023
        save_file(tensors, shard, {"format": "pt"})
        files |= dict.fromkeys(tensors, shard.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config))


def make_gguf(file: Path, model: Path) -> None:
    """Write a checkpoint that `make_checkpoint` made as a GGUF file, without a vocabulary. Rows of
    queries and keys stay in their order: llama.cpp would want another, and noise has none.
    """
    config = json.loads((model / "config.json").read_text())
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                writer.add_tensor(names.get_name(name, (".weight",)), tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
