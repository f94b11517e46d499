"""What other tools want beside, or instead of, a checkpoint of `random_model.py`: a tokenizer, a GGUF
file.
"""

import json
from pathlib import Path

import gguf
from safetensors import safe_open
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
