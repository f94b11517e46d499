"""Near ties of routing: rows of which rounding alone may send some to other experts.

In: the model in float64 and in a bundle's own type, watched while both run over the same sequences.
Out: where two experts are so close that what rounding moves scores by can swap them, and the rows that
depend on it. Such a row is another computation from there on, however little swapped them: its distance
from float64 says nothing about a graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from firp.export.verify.reference import model_rows, sequences, stage_rows
from firp.export.verify.report import Tie
from firp.export.verify.rounding import UNIT_ROUNDOFF, YARDSTICKS
from firp.export.verify.rows import Rows, Sample, StageRows
from firp.export.weights.stream import read_array
from firp.export.weights.streamed_model import Reference
from firp.runtime.bundle.model_config import ExpertsConfig
from firp.runtime.tuning.parity import Difference


class NearTies(NamedTuple):
    """Near ties of samples, by their rows."""

    dependent: list[StageRows]  # [T] bool: rows that depend on one
    margins: list[StageRows]  # [T]: how close the nearest one of a row is, in scores; inf where it has none

    def leave_rows(self, groups: list[int]) -> bool:
        """Whether every group of so many samples has rows of every stage and part to judge."""
        ends = np.cumsum(groups)
        return all(
            any(not getattr(getattr(sample, stage), part).all() for sample in self.dependent[start:end])
            for start, end in zip(ends - groups, ends, strict=True)
            for stage in StageRows._fields
            for part in Rows._fields
        )

    def found(self, start: int, end: int) -> tuple[Tie, ...]:
        """Those of some samples, in the prompt and in the tree after it."""
        return tuple(
            Tie(f"routing, {stage}", Difference(index, int(row), float(rows[row]), True))
            for index, sample in enumerate(self.margins[start:end])
            for stage, rows in (("prompt", sample.prefill.logits), ("tree", sample.tree.logits))
            for row in np.flatnonzero(np.isfinite(rows))
        )


def near_ties(
    reference: Reference,
    prediction_layer: int,
    samples: list[Sample],
    dtype: str,
    past: np.ndarray | None = None,
) -> tuple[list[StageRows], list[StageRows], NearTies]:
    """Rows of the model in float64 and in `dtype`, after what is cached before them (`model_rows`), and
    the near ties that its routers meet there.
    """
    shape = tuple(sequences(samples).shape)
    routers = _Routers(reference)
    with routers.watched() as true:
        truth = model_rows(reference, prediction_layer, samples, torch.float64, past)
    with routers.watched() as rounded:
        yardstick = model_rows(reference, prediction_layer, samples, getattr(torch, dtype), past)
    last = reference.checkpoint.config.num_hidden_layers - 1
    margins = np.full(shape, np.inf)
    states, logits = np.zeros(shape, bool), np.zeros(shape, bool)
    for index, *rows in zip(routers.layers, true, rounded, strict=True):
        margin = routers.margin(index, *rows, dtype).reshape(shape)
        tied = np.isfinite(margin)
        margins = np.minimum(margins, margin)
        later = np.maximum.accumulate(tied, axis=1)  # with the rows that attend to one in layers above
        logits |= later if index < last else tied
        if index < prediction_layer:
            states |= later if index < prediction_layer - 1 else tied
    dependent, nearest = stage_rows(samples, states, logits), stage_rows(samples, margins, margins)
    return truth, yardstick, NearTies(dependent, nearest)


class _Routers:
    """The routers of a model."""

    def __init__(self, reference: Reference):
        self._reference = reference
        self._checkpoint = reference.checkpoint
        self._weights = {weight.name: weight for weight in self._checkpoint.weights}
        layers = self._checkpoint.config.layers
        self.layers = [index for index, layer in enumerate(layers) if layer.sparse]

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """While the model runs, the rows [n, D] that experts get: a tensor for each sparse layer."""
        seen: list[torch.Tensor] = []

        def see(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))

        handles = []
        for index in self.layers:
            expert = self._weights[f"layers.{index}.experts.0.down_proj.weight"]
            handles.append(self._reference.routed(expert.sources[0])[1].register_forward_pre_hook(see))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def margin(self, layer: int, true: torch.Tensor, rounded: torch.Tensor, dtype: str) -> np.ndarray:
        """How close the near tie of a row is, [n], in scores; inf where it has none. true, rounded: rows
        [n, D] that experts get in float64 and in `dtype`.
        """
        scores = self._scores(layer, true, "float64")
        moved = (self._scores(layer, rounded, dtype) - scores).abs().amax(-1)
        moved = moved.maximum(moved.median()) + UNIT_ROUNDOFF[dtype] * scores.abs().amax(-1)
        margin = margin_of(self._checkpoint.config.experts, scores)
        return torch.where(margin <= YARDSTICKS * moved, margin, torch.inf).numpy()

    def _scores(self, layer: int, rows: torch.Tensor, dtype: str) -> torch.Tensor:
        """What the experts of rows [n, D] are chosen by, [n, E] f64; the router computes in `dtype`."""
        own = getattr(torch, dtype)
        logits = rows.to(own) @ self._values(layer, "router.weight").to(own).T
        if f"layers.{layer}.router.bias" in self._weights:
            logits = logits + self._values(layer, "router.bias").to(own)
        config = self._checkpoint.config.experts
        bias = self._values(layer, "selection_bias.weight") if config.selection_bias else None
        return scores_of(config, logits.double(), bias)

    def _values(self, layer: int, name: str) -> torch.Tensor:
        weight = self._weights[f"layers.{layer}.{name}"]
        return torch.from_numpy(read_array(weight, self._checkpoint.tensors))


def scores_of(config: ExpertsConfig, logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What experts are chosen by, [n, E], of the logits of a router: these, where nothing is added to what
    they become.
    """
    if config.score == "sparsemixer" or (bias is None and config.groups == 1):
        return logits
    scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
    return scores if bias is None else scores + bias


def margin_of(config: ExpertsConfig, scores: torch.Tensor) -> torch.Tensor:
    """How little the scores [n, E] of a row would have to move for other experts, [n]."""
    if config.score == "sparsemixer":
        return _margin_of_mixer(scores, 2 * config.jitter)
    margin = torch.full(scores.shape[:1], torch.inf, dtype=scores.dtype)
    if config.groups > 1:
        grouped = scores.unflatten(-1, (config.groups, -1))
        ratings = grouped.topk(config.groups_rated_by).values.sum(-1)
        margin = _gap(ratings, config.groups_kept) / config.groups_rated_by
        kept = torch.zeros_like(ratings).scatter(1, ratings.topk(config.groups_kept).indices, 1)
        scores = grouped.masked_fill(kept[..., None] == 0, -torch.inf).flatten(1)
    return margin.minimum(_gap(scores, config.per_token))


def _gap(scores: torch.Tensor, count: int) -> torch.Tensor:
    """What the last of the `count` best is ahead of the next, [n]."""
    if count == scores.shape[-1]:
        return torch.full(scores.shape[:1], torch.inf, dtype=scores.dtype)
    best = scores.topk(count + 1).values
    return best[:, count - 1] - best[:, count]


def _margin_of_mixer(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """The same of a sparsemixer, which also leaves out experts that are further than a share of their
    logits behind the best one that is left.
    """
    margin = _gap(logits, 1).minimum(_gap(logits, 2))
    best, place = logits.max(-1, keepdim=True)
    second = logits.scatter(1, place, -torch.inf).max(-1, keepdim=True).values
    for ahead in (best, second):
        size = logits.abs().maximum(ahead)
        behind = ((ahead - logits) - threshold * size).abs()
        margin = margin.minimum(behind.amin(-1))
    return margin
