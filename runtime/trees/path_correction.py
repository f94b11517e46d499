"""The path correction: ranks guesses given the token that each follows (method.md).

In: the guesses of one draft source, and the root token. Out: their `Ranking`. The pseudo rows guess
their offsets independently of each other; the correction pairs them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from firp.runtime.errors import BundleError, foreign_errors
from firp.runtime.trees.guesses import Guesses, Ranking

# of the tensors in a file
_DTYPES = {"previous": "float16", "following": "float16", "weight": "float32", "scale": "float32"}


class PathCorrection(NamedTuple):
    """Tables that score guesses. A child x of a node holding u, at offset j, scores
    scale_j * log q_j(x) + weight_j * previous[u] . following[x], renormalized over the candidates,
    which keep their joint share of q_j. Greedy decoding is more certain than sampling: it has its
    own scales.
    """

    previous: np.ndarray  # [V, r] f32
    following: np.ndarray  # [V, r] f32
    weight: np.ndarray  # [2, K] f32, for greedy and for sampled decoding
    scale: np.ndarray  # [2, K] f32, likewise

    def save(self, file: Path) -> None:
        """Write a safetensors file: tables in float16, scales in float32."""
        file.write_bytes(
            serialize(
                {name: np.ascontiguousarray(array, _DTYPES[name]) for name, array in self._asdict().items()}
            )
        )

    @staticmethod
    def load(file: Path, vocab_size: int, num_predictors: int) -> "PathCorrection":
        """Read a correction. Raises BundleError when the file is not a correction for this
        vocabulary and so many predictors.
        """
        with foreign_errors(
            lambda reason: BundleError("unreadable path correction", got=f"'{file}': {reason}")
        ):
            tensors = load_file(file)
        rank = tensors["previous"].shape[-1] if "previous" in tensors and tensors["previous"].ndim else 0
        expected = {
            "previous": (vocab_size, rank),
            "following": (vocab_size, rank),
            "weight": (2, num_predictors),
            "scale": (2, num_predictors),
        }
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise BundleError(f"bad path correction in '{file}'", got=found, expected=expected)
        types = {name: tensor.dtype.name for name, tensor in tensors.items()}
        if types != _DTYPES:
            raise BundleError(f"bad path correction in '{file}'", got=types, expected=_DTYPES)
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()) or (tensors["scale"] <= 0).any():
            raise BundleError(
                f"bad path correction in '{file}'", got="values that are not finite, or a scale of 0 or less"
            )
        return PathCorrection(**{name: tensor.astype(np.float32) for name, tensor in tensors.items()})

    def rank(self, root: int, guesses: Guesses, greedy: bool) -> Ranking:
        """Rank guesses given the token that each follows. Raises BundleError for unknown tokens."""
        ids, logprobs = guesses
        mode = 0 if greedy else 1
        if not 0 <= ids.min() <= ids.max() < len(self.following):
            got = f"token {ids.max() if ids.min() >= 0 else ids.min()}"
            raise BundleError(
                "guesses outside the vocabulary", got=got, expected=f"0 to {len(self.following) - 1}"
            )

        def probabilities(depth: int, place: int) -> np.ndarray:
            offset = depth - 1
            listed = logprobs[offset]
            previous = self.previous[root if depth == 1 else ids[offset - 1, place]]
            liked = self.following[ids[offset]] @ (previous * self.weight[mode, offset])
            scores = listed * self.scale[mode, offset] + liked
            weights = np.exp(scores - scores.max())
            return weights * (np.exp(listed).sum() / weights.sum())

        return Ranking(probabilities)
