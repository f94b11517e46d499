"""A checkpoint, whatever it was read from.

In: what a source found: the model's blueprint, its tensors by the source's own names, and which of
them our weights are made of. Out: `Checkpoint`. No tensor is read here, except to identify it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from firp.export.sources.safetensors_file import TensorRecord
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.errors import CheckpointError


class Weight(NamedTuple):
    """One tensor of the bundle: checkpoint tensors joined along their first axis, so that one GEMM
    serves them.
    """

    name: str  # ours (firp.runtime.bundle.weight_table)
    shape: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its blueprint, its tensors, and which of them each weight is made of."""

    path: Path
    config: ModelConfig
    weights: tuple[Weight, ...]  # in the order of the bundle's file
    tensors: dict[str, TensorRecord]  # by the source's names
    eos_token_ids: tuple[int, ...]

    def prediction_layer(self, requested: int | None) -> int:
        """The layer to split at: the requested one, or three quarters of the way up. Raises
        CheckpointError.
        """
        layers = self.config.num_hidden_layers
        if requested is not None and not 1 <= requested < layers:
            raise CheckpointError(
                "prediction layer out of range", got=requested, expected=f"1 to {layers - 1}"
            )
        return max(1, layers * 3 // 4) if requested is None else requested

    def fingerprint(self) -> str:
        """Identifies the weights: sha256 over every tensor's name, dtype, shape and first 4 KiB (a
        quick look, not a proof).
        """
        digest = hashlib.sha256()
        for name, record in sorted(self.tensors.items()):
            digest.update(f"{name} {record.dtype} {record.shape}".encode())
            with record.file.open("rb") as file:
                file.seek(record.offset)
                digest.update(file.read(min(4096, record.nbytes)))
        return digest.hexdigest()
