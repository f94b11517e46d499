"""How a calibration goes; the command line takes its defaults from here."""

import math
from dataclasses import dataclass

from firp.runtime.arguments import (
    TRUTH,
    Rule,
    check_fields,
    instance,
    integer,
    more_than_0,
    one_of,
    real,
    whole,
)
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
        check_fields(self, _FIELDS)
        needed = 2 * self.num_predictors + 2
        if self.window < needed:
            raise FirpError("bad window", got=self.window, expected=f"at least {needed} tokens")
        amount = (self.minutes or 0) if self.steps is None else self.steps
        if not amount:
            raise FirpError("bad training budget", got=amount, expected="more than 0 minutes or steps")


_LAYER = Rule(
    lambda value: value if value == AUTO and isinstance(value, str) else integer(value),
    lambda value: True,  # of the layers the model knows how many there are
    f"a layer or {AUTO}",
)
_FIELDS = {
    "num_predictors": whole(1, 16),
    "prediction_layer": _LAYER.or_none(),
    "minutes": Rule(real, lambda value: 0 <= value < math.inf, "0 or more, finite").or_none(),
    "steps": whole(0).or_none(),
    "seed": whole(0, 2**63 - 1),
    "window": whole(1),
    "batch": whole(1),
    "accumulate": whole(1),
    "anchors": whole(1),
    "learning_rate": more_than_0(1),
    "own_tokens": whole(1),
    "correction_rank": whole(1, 1024),
    "correction_learning_rate": more_than_0(1),
    "device": instance(str),
    "precision": one_of(PRECISIONS),
    "baselines": TRUTH,
}
