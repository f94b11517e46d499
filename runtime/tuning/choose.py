"""The choice of a tree on a device: expected tokens per step over predicted step time, or plain
decoding where nothing pays.

In: candidates (trees with their expected tokens per step, from calibration) and a latency table
(measured on the device). Out: `Choice`.
"""

from firp.runtime.bundle.calibration import (
    TEXTS,
    TYPICAL_CONTEXT,
    Calibration,
    Candidate,
    Choice,
    LatencyTable,
)
from firp.runtime.errors import FirpError

# what drafting must win, at the least, in prediction: less is within the error of the measurement
MARGIN = 1.02


def predicted_speedup(
    candidate: Candidate,
    latency: LatencyTable,
    num_predictors: int,
    text: str,
    cached: float = TYPICAL_CONTEXT,
) -> float:
    """Predicted speedup over plain decoding, whose steps give one token, after so many cached
    tokens.
    """
    mean_rows = (candidate.mean_rows or {}).get(text)
    step_ms = latency.step_ms(candidate.tree, num_predictors, candidate.undrafted[text], mean_rows, cached)
    return candidate.tokens_per_step[text] * latency.plain_ms(cached) / step_ms


def choose(
    calibration: Calibration,
    latency: LatencyTable,
    num_predictors: int,
    text: str = TEXTS[0],
    cached: int = TYPICAL_CONTEXT,
) -> Choice:
    """The candidate with the highest predicted rate after so many cached tokens. Raises FirpError
    when there is none for such text.
    """
    known = [candidate for candidate in calibration.candidates if text in candidate.tokens_per_step]
    if not known:
        raise FirpError("no calibrated tree to choose from", got=f"none for {text}", fix="calibrate again")
    speedups = [predicted_speedup(item, latency, num_predictors, text, cached) for item in known]
    speedup, place = max(zip(speedups, range(len(known)), strict=True), key=lambda pair: (pair[0], -pair[1]))
    best = known[place]
    drafts = bool(speedup >= MARGIN)
    return Choice(best.tree, drafts, text, best.tokens_per_step[text], round(speedup, 3), cached, latency)
