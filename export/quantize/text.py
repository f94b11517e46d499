"""Texts that a quantized model is calibrated and judged on.

In: a checkpoint, and a file of one's own. Out: token ids in sequences of one length. The texts of the
package are prose, instructions, arithmetic, code and letters, a few lines of them not English; the
one to judge on shares no line with the other. A model without a tokenizer gets random tokens.
"""

from pathlib import Path

import numpy as np

from firp.export.sources.checkpoint import Checkpoint
from firp.runtime.errors import CheckpointError
from firp.runtime.loop.text import encode_text

LEAST_TOKENS = 512  # of a calibration text: fewer leave channels that no token has driven to their range
SEQUENCE = 256
_MOST_TOKENS = 4096  # more change the ranges of SmolLM2 little, and take time and memory
_FOLDER = Path(__file__).parent


def calibration_tokens(checkpoint: Checkpoint, file: Path | None) -> np.ndarray:
    """Token ids [N, L] of a text file, or of the package's own text. Raises CheckpointError for a
    text that cannot be read or is too small.
    """
    return _tokens(checkpoint, file or _FOLDER / "calibration.txt", seed=0)


def held_out_tokens(checkpoint: Checkpoint) -> np.ndarray:
    """Token ids [N, L] of the text to judge on."""
    return _tokens(checkpoint, _FOLDER / "held_out.txt", seed=1)


def _tokens(checkpoint: Checkpoint, file: Path, seed: int) -> np.ndarray:
    config = checkpoint.config
    length = min(SEQUENCE, config.max_position_embeddings)
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        return np.random.default_rng(seed).integers(
            0, config.vocab_size, (-(-LEAST_TOKENS // length), length)
        )
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError("cannot read the calibration text", got=f"'{file}': {error}") from error
    ids = encode_text(tokenizer, text)[:_MOST_TOKENS]
    if len(ids) < LEAST_TOKENS:
        raise CheckpointError(
            "calibration text too small",
            got=f"{len(ids)} tokens in '{file}'",
            expected=f"at least {LEAST_TOKENS}",
            fix="give a longer text, or leave the option out",
        )
    return np.array(ids[: len(ids) // length * length]).reshape(-1, length)
