"""The predictor directory: what calibration writes and export takes.

    predictors.json               `PredictorInfo`: method, K, layer, the model it belongs to,
                                  training, held-out accuracy
    predictors.safetensors        `predictors.weight` [K, D, D]: pseudo_hidden_state[j] = weight[j] @
                                  hidden_state; and of a large vocabulary `draft_tokens` [n] i64: the
                                  frequent tokens of the training text
    path_correction.safetensors   `PathCorrection`, when correction_rank > 0
    calibration.json              `Calibration`: trees with their expected tokens per step; optional
A report may lie beside them. Nothing else is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.sources.tensor_record import TensorRecord
from firp.export.target_folder import disk_errors
from firp.export.weights import stream as weights
from firp.export.weights.fingerprint import fingerprint
from firp.runtime.bundle.calibration import Calibration, read_calibration
from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.bundle.format import CALIBRATION_NAME, CORRECTION_NAME
from firp.runtime.bundle.json_fields import from_json, read_json, to_json, write_json
from firp.runtime.errors import BundleError, CheckpointError
from firp.runtime.trees.path_correction import PathCorrection

FORMAT_VERSION = 2
MARKER = "predictors.json"
TENSOR_FILE = "predictors.safetensors"
TENSOR_NAME = "predictors.weight"
TOKENS_NAME = "draft_tokens"
STORED = "bfloat16"  # type of the tensor as calibration writes it; any float type is read


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out guesses that are the model's own greedy token, for each offset."""

    top1: tuple[float, ...]  # [K]
    top3: tuple[float, ...]
    top5: tuple[float, ...]
    top10: tuple[float, ...]
    guesses: int  # at each offset


@dataclass(frozen=True)
class PredictorInfo:
    """Description of trained predictors, as predictors.json holds it."""

    format_version: int
    method: str  # "firp"
    num_predictors: int  # K
    prediction_layer: int  # t: they read the hidden state at the input of layer t
    hidden_size: int  # D
    correction_rank: int  # of the path correction; 0: there is none
    model_name: str
    model_fingerprint: str  # fingerprint of the model they were trained on
    training: dict[str, Any]  # data, steps, seed, minutes
    held_out: Accuracy


@dataclass(frozen=True)
class Predictors:
    """A predictor directory, read and checked; its tensor stays on disk."""

    info: PredictorInfo
    tensor: TensorRecord
    draft_tokens: np.ndarray | None  # [n] i64; None: they do not say
    files: dict[str, Path]  # name -> path of what a bundle takes as it is: path correction, calibration


def open_predictors(path: Path, checkpoint: Checkpoint) -> Predictors:
    """Read a predictor directory. Raises CheckpointError when the directory is not whole, or was
    made for another model.
    """
    for name in (MARKER, TENSOR_FILE):
        if not (path / name).is_file():
            raise CheckpointError(
                "not a predictor directory",
                got=f"'{path}' without {name}",
                fix="write one with firp calibrate",
            )
    info = _read_info(path / MARKER)
    config = checkpoint.config
    if info.hidden_size != config.hidden_size:
        raise CheckpointError(
            "predictors for another hidden size", got=info.hidden_size, expected=config.hidden_size
        )
    if not 1 <= info.prediction_layer < config.num_hidden_layers:
        raise CheckpointError(
            "predictors for a layer that the model lacks",
            got=info.prediction_layer,
            expected=f"1 to {config.num_hidden_layers - 1}",
        )
    found = fingerprint(checkpoint)
    if info.model_fingerprint != found:
        raise CheckpointError(
            "predictors of another model",
            got=f"'{info.model_name}' ({info.model_fingerprint[:12]})",
            expected=f"'{checkpoint.name}' ({found[:12]})",
            fix="train predictors for this model with firp calibrate",
        )
    tensors = read_safetensors(path / TENSOR_FILE, (*MODEL_DTYPES, "int64"))
    shape = (info.num_predictors, info.hidden_size, info.hidden_size)
    if set(tensors) - {TOKENS_NAME} != {TENSOR_NAME} or tensors[TENSOR_NAME].shape != shape:
        found = {name: record.shape for name, record in tensors.items()}
        raise CheckpointError(
            "predictors.safetensors does not match predictors.json", got=found, expected={TENSOR_NAME: shape}
        )
    tokens = _checked_tokens(tensors.get(TOKENS_NAME), config.vocab_size)
    return Predictors(info, tensors[TENSOR_NAME], tokens, _checked_files(path, info, config.vocab_size))


def _checked_tokens(record: TensorRecord | None, vocab_size: int) -> np.ndarray | None:
    if record is None:
        return None
    tokens = np.concatenate([*weights.read_chunks(TOKENS_NAME, record)])
    if record.dtype != "int64" or tokens.ndim != 1 or not 64 <= len(np.unique(tokens)) == len(tokens):
        raise CheckpointError(
            f"bad {TOKENS_NAME} of predictors",
            got=f"{record.dtype} {record.shape}",
            expected="64 or more ids",
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        got = f"{tokens.min()} to {tokens.max()}"
        raise CheckpointError(f"bad {TOKENS_NAME} of predictors", got=got, expected=f"0 to {vocab_size - 1}")
    return tokens


def _checked_files(path: Path, info: PredictorInfo, vocab_size: int) -> dict[str, Path]:
    files = {}
    try:
        if info.correction_rank:
            files[CORRECTION_NAME] = path / CORRECTION_NAME
            PathCorrection.load(path / CORRECTION_NAME, vocab_size, info.num_predictors)
        if (path / CALIBRATION_NAME).is_file():
            files[CALIBRATION_NAME] = path / CALIBRATION_NAME
            read_calibration(path / CALIBRATION_NAME, info.num_predictors)
    except BundleError as error:  # the runtime's own readers, but this is no bundle
        raise error.with_fix(CheckpointError, "write it with firp calibrate") from error
    return files


def write_predictors(
    folder: Path,
    info: PredictorInfo,
    weight: np.ndarray,
    correction: PathCorrection | None = None,
    calibration: Calibration | None = None,
    draft_tokens: np.ndarray | None = None,
) -> None:
    """Write a predictor directory. weight: [K, D, D] f32, stored in bfloat16; draft_tokens: [n] i64.
    The folder exists; the caller makes it appear whole.
    """
    outputs = [weights.from_array(TENSOR_NAME, weight)]
    if draft_tokens is not None:
        outputs.append(weights.from_array(TOKENS_NAME, draft_tokens)._replace(dtype="int64"))
    with disk_errors(folder):
        weights.write_safetensors(folder / TENSOR_FILE, outputs, STORED)
        if correction:
            correction.save(folder / CORRECTION_NAME)
        if calibration:
            write_json(folder / CALIBRATION_NAME, to_json(calibration))
        write_json(folder / MARKER, to_json(info))


def _read_info(file: Path) -> PredictorInfo:
    try:
        info = from_json(PredictorInfo, read_json(file), str(file))
    except BundleError as error:  # the same strict reader, but this is no bundle
        raise error.with_fix(CheckpointError, "write it with firp calibrate") from error
    if (
        info.format_version != FORMAT_VERSION
        or info.method != "firp"
        or info.num_predictors < 1
        or info.correction_rank < 0
    ):
        raise CheckpointError(
            "unsupported predictors",
            got=f"format {info.format_version}, method {info.method}, {info.num_predictors} predictors",
            expected=f"format {FORMAT_VERSION}, method firp, at least 1",
        )
    return info
