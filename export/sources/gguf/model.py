"""A GGUF file as a `Checkpoint`.

In: one file, or the first of several parts. Out: the blueprint, where every tensor lies, and the
tokenizer as Hugging Face's files. Its quantized tensors stay as they are until they are streamed.
"""

from pathlib import Path
from typing import Any

from firp.export.sources.architecture import architecture
from firp.export.sources.assemble import assemble
from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.gguf.architectures import ARCHITECTURES, architecture_of
from firp.export.sources.gguf.config import transformers_dictionary
from firp.export.sources.gguf.file import GgufFile, read_gguf_file
from firp.export.sources.gguf.metadata import Metadata
from firp.export.sources.gguf.names import renamed
from firp.export.sources.gguf.tokenizer import tokenizer_files
from firp.export.sources.gguf.vocabulary import Vocabulary
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.extras import require


def read_gguf(path: Path) -> Checkpoint:
    """Read and check a GGUF file: its architecture, its tensor types and its tokenizer are supported,
    and every tensor is there, has its shape and is used.

    Raises CheckpointError, one message for each way it can be wrong.
    """
    require("a GGUF file", ("gguf",))
    file = read_gguf_file(path)
    config: dict[str, Any] = transformers_dictionary(path, file)
    found = architecture(config, str(path))
    vocabulary = Vocabulary.read(path, file.metadata)
    ends = vocabulary.ends() if vocabulary else ()
    ids = vocabulary.ids if vocabulary else {}
    config |= {
        "eos_token_id": list(ends) or None,
        "bos_token_id": ids.get("bos_token_id"),
        "pad_token_id": ids.get("padding_token_id"),
    }
    companions = tokenizer_files(vocabulary) if vocabulary else {}
    row = architecture_of(Metadata(path, file.metadata, ARCHITECTURES), file.tensors)
    name, later = file.metadata["general.architecture"], config["num_nextn_predict_layers"]
    tensors = renamed(file.tensors | _listed(file), name, row, found.names, found.config, later)
    return assemble(path, config, found, tensors, ends, companions)


def _listed(file: GgufFile) -> dict[str, TensorRecord]:
    """Weights of activations, which Apertus' files list in the metadata, a number for each layer."""
    return {
        f"blk.{layer}.{key}": part
        for key, record in file.lists.items()
        if key.startswith("xielu.")
        for layer, part in enumerate(record.apart(record.shape[0]) if record.shape[0] else ())
    }
