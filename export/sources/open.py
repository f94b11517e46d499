"""The place where a path becomes a `Checkpoint`: a Hugging Face model directory, or a GGUF file."""

from pathlib import Path

from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.gguf.model import read_gguf
from firp.export.sources.huggingface import read_model_directory
from firp.runtime.errors import CheckpointError


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a model, whatever holds it. Raises CheckpointError, one message for each way it
    can be wrong.
    """
    path = Path(path)
    if path.is_dir():
        return read_model_directory(path)
    if path.is_file():
        return read_gguf(path)
    raise CheckpointError(
        "no such model", got=f"'{path}'", expected="a Hugging Face model directory, or a GGUF file"
    )
