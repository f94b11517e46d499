"""The tokens that drafts are replayed on: a prompt, and what followed it."""

from typing import NamedTuple

import numpy as np


class TokenSequence(NamedTuple):
    """A prompt and the tokens after it, decoded by the model or written by people."""

    tokens: np.ndarray  # [S] i64, the prompt's first
    prompt_tokens: int
