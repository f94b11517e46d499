"""Text files as windows of tokens, with a held-out part that training never sees.

In: UTF-8 text files and the model's tokenizer. Out: `Dataset`: training and held-out windows [n, window] i64.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from firp.runtime.errors import FirpError

HELD_OUT_SHARE = 0.05  # of the windows, the last ones; at least one


class Dataset(NamedTuple):
    training: np.ndarray  # [n, window] i64
    held_out: np.ndarray  # [m, window] i64
    tokens: int  # in all files


def load_dataset(files: list[Path], tokenizer: Tokenizer, window: int, separator: int | None) -> Dataset:
    """Tokenize whole files, join them (each closed by `separator`) and cut windows. Raises FirpError for data that is too small."""
    streams = []
    for file in files:
        ids = tokenizer.encode(_read_text(file), add_special_tokens=False).ids
        streams.append(np.array(ids if separator is None else [*ids, separator], np.int64))
    stream = np.concatenate(streams)
    windows = stream[: len(stream) // window * window].reshape(-1, window)
    if len(windows) < 2:
        raise FirpError(
            "too little calibration data", got=f"{len(stream)} tokens", expected=f"at least {2 * window}", fix="give more text"
        )
    held_out = max(1, round(len(windows) * HELD_OUT_SHARE))
    return Dataset(windows[:-held_out], windows[-held_out:], len(stream))


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise FirpError("cannot read calibration data", got=f"'{file}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FirpError("calibration data is not text", got=f"'{file}': byte {error.start} is not UTF-8") from error
