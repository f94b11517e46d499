"""What a calibration found: all that report.json, the pictures and the benchmark table show."""

from dataclasses import dataclass

from firp.export.bundle.predictor_dir import Accuracy
from firp.runtime.bundle.calibration import Choice

REPORT_ROWS = (4, 8, 16, 32, 64)  # tree sizes that the report compares, root included


@dataclass(frozen=True)
class LayerFindings:
    """One prediction layer of the sweep, after a short training."""

    prediction_layer: int
    top1: tuple[float, ...]  # [K] on held-out text
    tokens_per_step: float  # of the tree that is fastest at this layer, greedy
    speedup: float  # expected, over plain decoding


@dataclass(frozen=True)
class MethodFindings:
    """One method, trained as the others were."""

    method: str
    accuracy: Accuracy | None  # None: a method without guesses by offset (prompt lookup)
    curve: tuple[tuple[int, tuple[float, ...]], ...]  # (step, loss by offset in nats)
    # text -> tokens per step [len(REPORT_ROWS)], guesses as they come
    independent: dict[str, tuple[float, ...]]
    # the same, ranked by a path correction trained for this method; {} without one
    corrected: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Findings:
    model_name: str
    num_hidden_layers: int
    prediction_layer: int
    num_predictors: int
    tokens: int  # of training and held-out data
    steps: int
    minutes: float
    methods: tuple[MethodFindings, ...]  # firp first
    # text -> [len(REPORT_ROWS)]: static trees, corrected as the dynamic ones
    static: dict[str, tuple[float, ...]]
    # text -> [K, ranks]: child of that rank accepted, once its parent is
    acceptance: dict[str, tuple[tuple[float, ...], ...]]
    # [K, N - t + 1]: cosine of pseudo and real hidden states from layer t on
    similarity: tuple[tuple[float, ...], ...]
    layers: tuple[LayerFindings, ...]  # () when the layer was given
    # (rows, best expected speedup of a tree with so many), () without a latency table
    speedups: tuple[tuple[int, float], ...]
    choice: Choice | None  # None without a latency table
    rows: tuple[int, ...] = REPORT_ROWS  # what the tuples over tree sizes stand for
