"""The predictor directory: what calibration writes and export takes.

It holds predictors.json (`PredictorInfo`) and predictors.safetensors with one tensor, `predictors.weight` [K, D, D]:
pseudo_hidden_state[j] = weight[j] @ hidden_state (method.md). Nothing else is read from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firp.export.checkpoint import Checkpoint
from firp.export.safetensors_file import TensorRecord, read_safetensors
from firp.runtime.bundle import from_json, read_json
from firp.runtime.errors import BundleError, CheckpointError

FORMAT_VERSION = 1
TENSOR_NAME = "predictors.weight"


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out guesses that are the model's own greedy token, for each offset."""

    top1: tuple[float, ...]  # [K]
    top5: tuple[float, ...]  # [K]
    guesses: int  # at each offset


@dataclass(frozen=True)
class PredictorInfo:
    format_version: int
    method: str  # "firp"
    num_predictors: int  # K
    prediction_layer: int  # t: they read the hidden state at the input of layer t
    hidden_size: int  # D
    model_name: str
    model_fingerprint: str  # Checkpoint.fingerprint of the model they were trained on
    training: dict[str, Any]  # data, steps, seed, minutes
    held_out: Accuracy


@dataclass(frozen=True)
class Predictors:
    info: PredictorInfo
    tensor: TensorRecord


def open_predictors(path: Path, checkpoint: Checkpoint) -> Predictors:
    """Raises CheckpointError when the directory is not whole, or was made for another model."""
    for name in ("predictors.json", "predictors.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError("not a predictor directory", got=f"'{path}' without {name}", fix="write one with firp calibrate")
    info = _read_info(path / "predictors.json")
    config = checkpoint.config
    if info.hidden_size != config.hidden_size:
        raise CheckpointError("predictors for another hidden size", got=info.hidden_size, expected=config.hidden_size)
    if not 1 <= info.prediction_layer < config.num_hidden_layers:
        raise CheckpointError(
            "predictors for a layer that the model lacks",
            got=info.prediction_layer,
            expected=f"1 to {config.num_hidden_layers - 1}",
        )
    fingerprint = checkpoint.fingerprint()
    if info.model_fingerprint != fingerprint:
        raise CheckpointError(
            "predictors of another model",
            got=f"'{info.model_name}' ({info.model_fingerprint[:12]})",
            expected=f"'{checkpoint.path.name}' ({fingerprint[:12]})",
            fix="train predictors for this model with firp calibrate",
        )
    tensors = read_safetensors(path / "predictors.safetensors")
    shape = (info.num_predictors, info.hidden_size, info.hidden_size)
    if set(tensors) != {TENSOR_NAME} or tensors[TENSOR_NAME].shape != shape:
        found = {name: record.shape for name, record in tensors.items()}
        raise CheckpointError("predictors.safetensors does not match predictors.json", got=found, expected={TENSOR_NAME: shape})
    return Predictors(info, tensors[TENSOR_NAME])


def _read_info(file: Path) -> PredictorInfo:
    try:
        info = from_json(PredictorInfo, read_json(file), str(file))
    except BundleError as error:  # the same strict reader, but this is no bundle
        raise CheckpointError(error.what, got=error.got, expected=error.expected, fix="write it with firp calibrate") from error
    if info.format_version != FORMAT_VERSION or info.method != "firp" or info.num_predictors < 1:
        raise CheckpointError(
            "unsupported predictors", got=f"format {info.format_version}, method {info.method}, {info.num_predictors} predictors",
            expected=f"format {FORMAT_VERSION}, method firp, at least 1",
        )  # fmt: skip
    return info
