"""What trained heads are worth: held-out text decoded by the model, and every method and tree
replayed on it.

In: the model, held-out windows, trainers that are done. Out: `Findings` for the report,
`Calibration` for the tuner.
"""

import functools
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import nn

from firp.calib.replay.accuracy import accuracy, similarity
from firp.calib.replay.drafters import replay_drafter
from firp.calib.replay.replay import Drafted, Recorded, Sequence, rank, record, replay
from firp.calib.replay.scales import fit_scales
from firp.calib.replay.trees import (
    acceptance_by_rank,
    as_candidates,
    best_static_tree,
    candidates,
    firp_candidates,
)
from firp.calib.report.findings import REPORT_ROWS, Findings, LayerFindings, MethodFindings
from firp.calib.text.continuations import SAMPLING_TEMPERATURE, continue_prompts
from firp.calib.text.documents import Dataset
from firp.calib.training.options import TrainOptions
from firp.calib.training.trainer import Trainer
from firp.runtime.bundle.calibration import Calibration, Candidate, LatencyTable
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import TreeConfig
from firp.runtime.tuning.choose import choose, predicted_speedup

SEQUENCES = 24  # held-out prompts decoded
PROMPT_SHARE, LENGTH = 0.3, 160  # of a sequence, and its tokens
_RANKS_SHOWN = 8


class Evaluated(NamedTuple):
    findings: Findings
    calibration: Calibration
    correction: PathCorrection


class Evaluation:
    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        options: TrainOptions,
        ends: tuple[int, ...],
        progress: Callable,
    ):
        self.model, self.dataset, self.options, self.ends, self.progress = (
            model,
            dataset,
            options,
            ends,
            progress,
        )

    @cached_property
    def sequences(self) -> dict[str, list[Sequence]]:
        """Held-out prompts continued greedily and sampled, and the held-out text itself. Prompts
        are spread over the whole part.
        """
        chosen = _spread(self.dataset.held_out)
        greedy, sampled = self._decoded(chosen)
        return {
            "greedy": greedy,
            "sampled": sampled,
            "text": [Sequence(row, _prompt_tokens(chosen)) for row in chosen],
        }

    def _decoded(self, windows: np.ndarray) -> tuple[list[Sequence], list[Sequence]]:
        prompt_tokens = _prompt_tokens(windows)
        prompts, new_tokens = windows[:, :prompt_tokens].tolist(), windows.shape[1] - prompt_tokens
        report = functools.partial(self.progress, "decoding prompts")
        greedy, sampled = (
            continue_prompts(
                self.model, prompts, new_tokens, temperature, self.options.seed, self.ends, report
            )
            for temperature in (0.0, SAMPLING_TEMPERATURE)
        )
        return greedy, sampled

    @cached_property
    def fitting_sequences(self) -> tuple[list[Sequence], list[Sequence]]:
        """Training prompts continued greedily and sampled: what scales are fitted on, so that
        held-out text stays unseen.
        """
        return self._decoded(_spread(self.dataset.training))

    def correction(self, trainer: Trainer) -> PathCorrection:
        """The path correction that the trainer learned, its scales fitted."""
        return fit_scales(self._fitting(trainer), trainer.tables.finish())

    def _fitting(self, trainer: Trainer) -> tuple[list[Recorded], list[Recorded]]:
        greedy, sampled = (record(trainer.frozen, trainer.heads, each) for each in self.fitting_sequences)
        return greedy, sampled

    def layer_findings(self, trainer: Trainer, latency: LatencyTable) -> LayerFindings:
        """What a shortly trained layer promises: the tree that is fastest there."""
        layer, k = trainer.frozen.prediction_layer, self.options.num_predictors
        recorded = record(trainer.frozen, trainer.heads, self.sequences["greedy"])
        drafted = rank(recorded, self.correction(trainer), greedy=True)
        found, at_layer = as_candidates({"greedy": firp_candidates(drafted, k)}), latency.at_layer(layer)
        best = max(found, key=lambda each: predicted_speedup(each, at_layer, k, "greedy"))
        return LayerFindings(
            layer,
            accuracy(trainer.frozen, trainer.heads, self.dataset.held_out).top1,
            best.tokens_per_step["greedy"],
            round(predicted_speedup(best, at_layer, k, "greedy"), 3),
        )

    def findings(
        self,
        trainers: list[Trainer],
        model_name: str,
        swept: tuple[LayerFindings, ...],
        latency: LatencyTable | None,
    ) -> Evaluated:
        """The first trainer is FIRP's; the others are baselines."""
        firp, k = trainers[0], self.options.num_predictors
        fitting = self._fitting(firp)
        corrections = [fit_scales(fitting, firp.tables.finish()), *map(self.correction, trainers[1:])]
        static_trees = [
            self._static_trees(rank(recorded, corrections[0], mode == 0))
            for mode, recorded in enumerate(fitting)
        ]
        independent, corrected = [{} for _ in trainers], [{} for _ in trainers]
        trees, static, acceptance = {}, {}, {}
        # one at a time: rankings take megabytes for every prompt
        for text, sequences in self.sequences.items():
            greedy = text == "greedy"
            # FIRP last: its rankings serve the trees too
            for index, trainer in reversed(list(enumerate(trainers))):
                self.progress(f"measuring {trainer.heads.method}, {text}", len(trees), len(self.sequences))
                recorded = record(trainer.frozen, trainer.heads, sequences)
                independent[index][text] = _dynamic(rank(recorded, None, greedy))
                drafted = rank(recorded, corrections[index], greedy)
                corrected[index][text] = _dynamic(drafted)
            trees[text] = candidates(drafted, k, corrections[0], greedy)
            static[text] = tuple(_rate(drafted, tree) for tree in static_trees[0 if greedy else 1])
            shares = acceptance_by_rank(drafted, k)[:, :_RANKS_SHOWN]
            acceptance[text] = tuple(tuple(row) for row in shares.round(4).tolist())
        methods = [self._method(*each) for each in zip(trainers, independent, corrected, strict=True)]
        if len(trainers) > 1:
            methods.append(self._lookup())
        calibration = Calibration(tuple(as_candidates(trees)))
        at_layer = latency.at_layer(firp.frozen.prediction_layer) if latency else None
        findings = Findings(
            model_name=model_name,
            num_hidden_layers=len(firp.frozen.model.model.layers),
            prediction_layer=firp.frozen.prediction_layer,
            num_predictors=k,
            tokens=self.dataset.tokens,
            steps=firp.step,
            minutes=round(firp.seconds / 60, 2),
            methods=tuple(methods),
            static=static,
            acceptance=acceptance,
            similarity=tuple(map(tuple, similarity(firp.frozen, firp.heads, self.dataset.held_out))),
            layers=swept,
            speedups=_speedups(calibration.candidates, at_layer, k) if at_layer else (),
            choice=choose(calibration, at_layer, k) if at_layer else None,
        )
        return Evaluated(findings, calibration, corrections[0])

    def _method(self, trainer: Trainer, independent: dict, corrected: dict) -> MethodFindings:
        shares = accuracy(trainer.frozen, trainer.heads, self.dataset.held_out)
        curve = tuple((step, tuple(loss)) for step, loss in trainer.curve)
        return MethodFindings(trainer.heads.method, shares, curve, independent, corrected)

    def _static_trees(self, known: list[Drafted]) -> list[TreeConfig]:
        """The best static trees for what the model decodes from training prompts: made on the
        held-out sequences that they are measured on, a tree of fixed ranks would know the answers.
        """
        return [
            TreeConfig.static(best_static_tree(known, self.options.num_predictors, rows - 1))
            for rows in REPORT_ROWS
        ]

    def _lookup(self) -> MethodFindings:
        found = {}
        for text, sequences in self.sequences.items():
            plain = [
                Drafted(sequence.tokens.tolist(), sequence.prompt_tokens, {}, {}) for sequence in sequences
            ]
            trees = [TreeConfig.lookup(rows) for rows in REPORT_ROWS]
            replays = [replay_drafter(plain, tree, 0, None, text == "greedy") for tree in trees]
            found[text] = tuple(round(replayed.tokens_per_step, 4) for replayed in replays)
        return MethodFindings("prompt lookup", None, (), found, {})


def _spread(windows: np.ndarray) -> np.ndarray:
    """Some windows from all over, cut to LENGTH."""
    return windows[np.linspace(0, len(windows) - 1, min(SEQUENCES, len(windows))).astype(int), :LENGTH]


def _prompt_tokens(windows: np.ndarray) -> int:
    return max(1, int(windows.shape[1] * PROMPT_SHARE))


def _dynamic(sequences: list[Drafted]) -> tuple[float, ...]:
    return tuple(_rate(sequences, TreeConfig("dynamic", rows, None)) for rows in REPORT_ROWS)


def _rate(sequences: list[Drafted], tree: TreeConfig) -> float:
    return round(replay(sequences, tree).tokens_per_step, 4)


def _speedups(found: tuple[Candidate, ...], latency: LatencyTable, k: int) -> tuple[tuple[int, float], ...]:
    """The best expected speedup of greedy decoding at each tree size."""
    best: dict[int, float] = {}
    for each in found:
        best[each.tree.rows] = max(
            best.get(each.tree.rows, 0.0), predicted_speedup(each, latency, k, "greedy")
        )
    return tuple((rows, round(speedup, 3)) for rows, speedup in sorted(best.items()))
