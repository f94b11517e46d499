"""What identifies a model, whatever file it was read from.

In: a `Checkpoint`. Out: a digest of its weights' values: a GGUF file and the model directory that
holds its values have the same, unless one of them keeps a tensor turned.
"""

import hashlib

import numpy as np

from firp.export.sources.checkpoint import Checkpoint
from firp.export.weights.stream import first_values

_VALUES = 1024  # of each tensor: a quick look, not a proof


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over name, shape and first values, as float32, of every tensor that the model uses.
    Raises CheckpointError for one that cannot be read.
    """
    digest = hashlib.sha256()
    for name in (source for weight in checkpoint.weights for source in weight.sources):
        record = checkpoint.tensors[name]
        digest.update(f"{name} {record.shape}".encode())
        digest.update(first_values(name, record, _VALUES).astype(np.float32).tobytes())
    return digest.hexdigest()
