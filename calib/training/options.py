"""How a calibration goes; the command line takes its defaults from here."""

import math
from dataclasses import dataclass

from firp.runtime.errors import FirpError

AUTO = "auto"
PRECISIONS = ("float32", "bfloat16")  # of the frozen model while predictors train; the first is the default


@dataclass(frozen=True)
class TrainOptions:
    """Raises FirpError when made with a value that means nothing."""

    num_predictors: int = 3  # K, as in the paper
    # None: three quarters of the layers; "auto": the best of a sweep
    prediction_layer: int | str | None = None
    minutes: float | None = 10.0  # how long to train; the learning rate falls to 0 at the end
    steps: int | None = None  # train for this many steps instead
    seed: int = 0
    window: int = 256  # tokens of one training sequence
    batch: int = 4  # sequences of one pass
    accumulate: int = 1  # passes of one step
    anchors: int = 128  # draft sources sampled from each sequence
    learning_rate: float = 5e-3
    own_tokens: int = 200_000  # that the model writes after prompts, which keep half a window at most
    correction_rank: int = 64  # of the path correction
    correction_learning_rate: float = 1e-2
    device: str = "cpu"
    precision: str = PRECISIONS[0]
    baselines: bool = False  # train Medusa heads and early exit as well, with the same budget, and compare

    def __post_init__(self):
        amount = (self.minutes or 0) if self.steps is None else self.steps
        layer = self.prediction_layer
        limits = (
            ("number of predictors", self.num_predictors, 1 <= self.num_predictors <= 16, "1 to 16"),
            ("training budget", amount, 0 < amount < math.inf, "more than 0 minutes or steps"),
            (
                "prediction layer",
                layer,
                layer is None or layer == AUTO or isinstance(layer, int),
                f"a layer or {AUTO}",
            ),
            (
                "window",
                self.window,
                self.window >= 2 * self.num_predictors + 2,
                f"at least {2 * self.num_predictors + 2} tokens",
            ),
            ("batch", self.batch, self.batch >= 1, "at least 1 sequence"),
            ("accumulate", self.accumulate, self.accumulate >= 1, "at least 1 pass"),
            ("anchors", self.anchors, self.anchors >= 1, "at least 1"),
            ("learning rate", self.learning_rate, 0 < self.learning_rate <= 1, "more than 0 and at most 1"),
            ("own tokens", self.own_tokens, self.own_tokens >= 1, "at least 1"),
            ("correction rank", self.correction_rank, 1 <= self.correction_rank <= 1024, "1 to 1024"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "in [0, 2^63)"),
            ("precision", self.precision, self.precision in PRECISIONS, " or ".join(PRECISIONS)),
        )
        for name, value, good, expected in limits:
            if not good:
                raise FirpError(f"bad {name}", got=repr(value), expected=expected)
