"""The choice of a tree on a device: expected tokens per step over predicted step time, or plain
decoding where nothing pays.

In: candidates (trees with their expected tokens per step, from calibration) and a latency table
(measured on the device). Out: `Choice`.
"""

from firp.runtime.bundle.calibration import TEXTS, Calibration, Candidate, Choice, LatencyTable
from firp.runtime.errors import FirpError

# what drafting must win, at the least, in prediction: less is within the error of the measurement
MARGIN = 1.02


def predicted_speedup(candidate: Candidate, latency: LatencyTable, num_predictors: int, text: str) -> float:
    """Predicted speedup over plain decoding, whose steps give one token."""
    mean_rows = (candidate.mean_rows or {}).get(text)
    step_ms = latency.step_ms(candidate.tree, num_predictors, candidate.undrafted[text], mean_rows)
    return candidate.tokens_per_step[text] * latency.plain_ms() / step_ms


def choose(
    calibration: Calibration, latency: LatencyTable, num_predictors: int, text: str = TEXTS[0]
) -> Choice:
    """The candidate with the highest predicted rate. Raises FirpError when there is none for such
    text.
    """
    known = [candidate for candidate in calibration.candidates if text in candidate.tokens_per_step]
    if not known:
        raise FirpError("no calibrated tree to choose from", got=f"none for {text}", fix="calibrate again")
    best = max(known, key=lambda candidate: predicted_speedup(candidate, latency, num_predictors, text))
    speedup = predicted_speedup(best, latency, num_predictors, text)
    return Choice(
        best.tree, bool(speedup >= MARGIN), text, best.tokens_per_step[text], round(speedup, 3), latency
    )
