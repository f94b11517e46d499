"""Fits how far scores of guesses are to be trusted: per offset, for greedy and for sampled
decoding.

In: text that the model decoded from training prompts, with recorded guesses, and a path correction
as trained. Out: the same tables with scales under which the tokens that were decoded are likeliest.
Training matches the model's whole distribution; what greedy decoding picks is more certain than
that, and a tree that ranks paths across depths has to know how certain.
"""

import numpy as np

from firp.calib.replay.replay import Recorded
from firp.runtime.trees.path_correction import PathCorrection

SHARPNESS = (0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)  # what scores are multiplied by
CORRECTION_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # of the correction's own weight; 0: it does not help


def fit_scales(texts: tuple[list[Recorded], list[Recorded]], trained: PathCorrection) -> PathCorrection:
    """Fit the scales of a correction: every offset gets the pair on the grid with the highest
    likelihood. texts: decoded greedily, and sampled.
    """
    scale, weight = trained.scale.copy(), trained.weight.copy()
    for mode, recorded in enumerate(texts):
        for offset in range(scale.shape[1]):
            logprobs, corrections, hits = _observed(recorded, trained, offset)
            if not len(hits):
                continue
            base, correction = logprobs * scale[mode, offset], corrections * weight[mode, offset]
            _, sharpness, share = min(
                (_loss((base + correction * share) * sharpness, hits), sharpness, share)
                for sharpness in SHARPNESS
                for share in CORRECTION_SHARES
            )
            scale[mode, offset] *= sharpness
            weight[mode, offset] *= sharpness * share
    return trained._replace(scale=scale, weight=weight)


def _observed(
    recorded: list[Recorded], trained: PathCorrection, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities [n, k], corrections [n, k] and place of the decoded token [n], where it was
    among the guesses.
    """
    logprobs, corrections, hits = [], [], []
    for sequence, top_ids, top_logprobs in recorded:
        tokens = sequence.tokens
        sources = np.arange(sequence.prompt_tokens - 1, len(tokens) - 2 - offset)
        ids = top_ids[sources, offset]  # [n, k]
        match = ids == tokens[sources + 2 + offset, None]
        found = match.any(1)
        previous = trained.previous[tokens[sources + 1 + offset]]  # [n, r]
        corrections.append(np.einsum("nkr,nr->nk", trained.following[ids], previous)[found])
        logprobs.append(top_logprobs[sources, offset][found])
        hits.append(match.argmax(1)[found])
    return np.concatenate(logprobs), np.concatenate(corrections), np.concatenate(hits)


def _loss(scores: np.ndarray, hits: np.ndarray) -> float:
    """Mean negative log-likelihood in nats."""
    top = scores.max(1)
    return float(
        np.mean(top + np.log(np.exp(scores - top[:, None]).sum(1)) - scores[np.arange(len(hits)), hits])
    )
