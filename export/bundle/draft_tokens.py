"""The tokens that pseudo rows are decoded over, where a vocabulary is large: a head of frequent tokens
reads a fraction of the weights. Rows that are verified always see the whole vocabulary.

In: a checkpoint and its predictors, who saw text. Out: token ids, and the rows of the head for them.
"""

from collections.abc import Iterator

import numpy as np

from firp.export.bundle.predictor_dir import Predictors
from firp.export.quantize.decision import Plan
from firp.export.quantize.formats import quantize
from firp.export.quantize.outputs import matrix
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.stream import Output, from_array, read_array, read_chunks
from firp.runtime.bundle.precision import ROWS
from firp.runtime.bundle.weight_table import DRAFT_HEAD, head_name

COUNT = 8192  # of FR-Spec's sizes the one that loses next to nothing


def draft_tokens(checkpoint: Checkpoint, predictors: Predictors | None) -> np.ndarray | None:
    """Ids [COUNT] i64, ascending: those that were frequent where the predictors were trained; of
    predictors that do not say, the first of the vocabulary, which tokenizers merged first because they
    are frequent. None where the whole vocabulary is decoded, and where nothing is drafted.
    """
    if predictors is None or checkpoint.config.vocab_size <= 2 * COUNT:
        return None
    if predictors.draft_tokens is not None:
        return np.sort(predictors.draft_tokens)
    return most_frequent(np.zeros(checkpoint.config.vocab_size, np.int64), checkpoint.eos_token_ids)


def most_frequent(counts: np.ndarray, always: tuple[int, ...]) -> np.ndarray:
    """The COUNT tokens of the highest counts [V], of equal ones the first; `always` are among them."""
    counts = counts.copy()
    counts[list(always)] = counts.max() + 1
    return np.sort(np.argsort(-counts, kind="stable")[:COUNT])


def draft_head(checkpoint: Checkpoint, tokens: np.ndarray, plan: Plan | None) -> list[Output]:
    """Rows of the head for these tokens, as integers where a plan says what the head becomes."""
    name = head_name(checkpoint.config)
    weight = next(weight for weight in checkpoint.weights if weight.name == name)
    biases = [each for each in checkpoint.weights if each.name == f"{name.removesuffix('.weight')}.bias"]
    beside = [
        from_array(f"{DRAFT_HEAD}.bias", read_array(bias, checkpoint.tensors)[tokens]) for bias in biases
    ]
    shape = len(tokens), weight.shape[1]
    if plan:
        smoothing = plan.linears[name.removesuffix(".weight")].smoothing
        whole = lambda: np.concatenate([*_rows(checkpoint, weight, tokens)]) * smoothing  # noqa: E731
        return [*matrix(DRAFT_HEAD, shape, ROWS, lambda: quantize(whole(), ROWS)), *beside]
    return [Output(f"{DRAFT_HEAD}.weight", shape, lambda: _rows(checkpoint, weight, tokens)), *beside]


def _rows(checkpoint: Checkpoint, weight: Weight, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of a weight [V, D] for ascending tokens, f32, as its file is read."""
    size = weight.shape[1]
    (source,) = weight.sources
    rest = np.empty(0, np.float32)
    first = 0
    for chunk in read_chunks(source, checkpoint.tensors[source]):
        rest = np.concatenate([rest, chunk.astype(np.float32)])
        rows = len(rest) // size
        inside = tokens[(tokens >= first) & (tokens < first + rows)] - first
        yield rest[: rows * size].reshape(rows, size)[inside]
        rest = rest[rows * size :]
        first += rows
