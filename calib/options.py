"""How predictors are trained; the command line takes its defaults from here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    num_predictors: int = 3  # K, as in the paper
    prediction_layer: int | None = None  # None: three quarters of the layers
    minutes: float | None = 10.0  # how long to train; the learning rate falls to 0 at the end
    steps: int | None = None  # train for this many steps instead
    seed: int = 0
    window: int = 256  # tokens of one training sequence
    batch: int = 4  # sequences of one step
    anchors: int = 128  # draft sources sampled from each sequence
    learning_rate: float = 5e-3
