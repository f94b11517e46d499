"""What trained heads are worth: held-out text decoded by the model, and every method and tree
replayed on it.

In: a writer of the model's text, held-out windows, trainers that are done. Out: `Findings` for the
report, `Calibration` for the tuner.
"""

import functools
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from firp.calib.replay.accuracy import accuracy, similarity
from firp.calib.replay.drafters import replay_drafter
from firp.calib.replay.replay import Drafted, Recorded, Replay, rank, record, replay
from firp.calib.replay.scales import fit_scales
from firp.calib.replay.trees import (
    acceptance_by_rank,
    as_calibration,
    as_candidates,
    best_static_tree,
    candidates,
    firp_candidates,
)
from firp.calib.report.findings import REPORT_ROWS, Findings, LayerFindings, MethodFindings
from firp.calib.text.continuations import SAMPLING_TEMPERATURE, Beginnings, Writer
from firp.calib.text.documents import Dataset
from firp.calib.text.sequence import TokenSequence
from firp.calib.training.options import TrainOptions
from firp.calib.training.trainer import Trainer
from firp.runtime.bundle.calibration import Calibration, Candidate, LatencyTable
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.choose import choose, predicted_speedup

SEQUENCES = 24  # held-out prompts decoded
LENGTH = 160  # tokens of each, prompt included
PROMPT_SHARE = 0.3  # of them
_RANKS_SHOWN = 8


class Evaluated(NamedTuple):
    findings: Findings
    calibration: Calibration
    correction: PathCorrection


class MethodRates(NamedTuple):
    """Tokens per step of one method on one text, [len(REPORT_ROWS)]."""

    independent: tuple[float, ...]  # guesses as they come
    corrected: tuple[float, ...]  # ranked by the method's path correction


class Ranked(NamedTuple):
    """One method on one text: its rates, and the rankings that they come from."""

    rates: MethodRates
    drafted: list[Drafted]


class FirpText(NamedTuple):
    """What FIRP's drafts give on one text."""

    rates: MethodRates
    trees: list[tuple[TreeConfig, Replay]]  # the candidates of the tuner
    static: tuple[float, ...]  # tokens per step of static trees, [len(REPORT_ROWS)]
    acceptance: tuple[tuple[float, ...], ...]  # [K, ranks]: child of that rank accepted, once its parent is


class Evaluation:
    """The measurements of one calibration. Texts are decoded once, when first asked for."""

    def __init__(
        self,
        write: Writer,
        dataset: Dataset,
        options: TrainOptions,
        ends: tuple[int, ...],
        progress: Callable,
    ):
        self.write = write
        self.dataset = dataset
        self.options = options
        self.ends = ends
        self.progress = progress

    @cached_property
    def sequences(self) -> dict[str, list[TokenSequence]]:
        """Held-out prompts continued greedily and sampled, and the held-out text itself. Prompts
        are spread over the whole part.
        """
        chosen = _spread(self.dataset.held_out)
        greedy, sampled = (written[: len(chosen)] for written in self._decoded)
        return {
            "greedy": greedy,
            "sampled": sampled,
            "text": [TokenSequence(row, _prompt_tokens(chosen)) for row in chosen],
        }

    @cached_property
    def fitting_sequences(self) -> tuple[list[TokenSequence], list[TokenSequence]]:
        """Training prompts continued greedily and sampled: what scales are fitted on, so that
        held-out text stays unseen.
        """
        count = len(_spread(self.dataset.held_out))
        greedy, sampled = (written[count:] for written in self._decoded)
        return greedy, sampled

    @cached_property
    def _decoded(self) -> tuple[list[TokenSequence], list[TokenSequence]]:
        """Held-out prompts, then training prompts, continued greedily and sampled: in as few
        batches as there can be.
        """
        windows = np.concatenate([_spread(self.dataset.held_out), _spread(self.dataset.training)])
        prompt_tokens = _prompt_tokens(windows)
        asked = Beginnings(
            windows[:, :prompt_tokens].tolist(),
            windows.shape[1] - prompt_tokens,
            temperature=0.0,
            seed=self.options.seed,
            ends=self.ends,
        )
        progress = functools.partial(self.progress, "decoding prompts")
        sampled = asked._replace(temperature=SAMPLING_TEMPERATURE)
        return self.write(asked, progress), self.write(sampled, progress)

    def correction(self, trainer: Trainer) -> PathCorrection:
        """The path correction that the trainer learned, its scales fitted."""
        return fit_scales(self._fitting(trainer), trainer.tables.finish())

    def _fitting(self, trainer: Trainer) -> tuple[list[Recorded], list[Recorded]]:
        greedy, sampled = (record(trainer.frozen, trainer.heads, texts) for texts in self.fitting_sequences)
        return greedy, sampled

    def layer_findings(self, trainer: Trainer, latency: LatencyTable) -> LayerFindings:
        """What a shortly trained layer promises: the tree that is fastest there."""
        layer = trainer.frozen.prediction_layer
        k = self.options.num_predictors
        recorded = record(trainer.frozen, trainer.heads, self.sequences["greedy"])
        drafted = rank(recorded, self.correction(trainer), greedy=True)
        at_layer = latency.at_layer(layer)
        found = as_candidates({"greedy": firp_candidates(drafted, k)})
        best = max(found, key=lambda candidate: predicted_speedup(candidate, at_layer, k, "greedy"))
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
        """Everything that is measured. trainers: FIRP's first, then those of baselines; swept: the
        layers tried before; latency: of the device that a tree is chosen for.
        """
        firp = trainers[0]
        k = self.options.num_predictors
        fitting = self._fitting(firp)
        corrections = [fit_scales(fitting, firp.tables.finish()), *map(self.correction, trainers[1:])]
        static_trees = {
            greedy: self._static_trees(rank(recorded, corrections[0], greedy))
            for greedy, recorded in zip((True, False), fitting, strict=True)
        }
        rates: list[dict[str, MethodRates]] = [{} for _ in trainers]
        trees: dict[str, list[tuple[TreeConfig, Replay]]] = {}
        static: dict[str, tuple[float, ...]] = {}
        acceptance: dict[str, tuple[tuple[float, ...], ...]] = {}
        # one text at a time: rankings take megabytes for every prompt
        for text, sequences in self.sequences.items():
            greedy = text == "greedy"
            for index, trainer in enumerate(trainers[1:], 1):
                self._tell(trainer, text)
                rates[index][text] = _rank(trainer, sequences, corrections[index], greedy).rates
            self._tell(firp, text)
            measured = _firp_text(firp, sequences, corrections[0], greedy, static_trees[greedy])
            rates[0][text] = measured.rates
            trees[text] = measured.trees
            static[text] = measured.static
            acceptance[text] = measured.acceptance
        methods = [self._method(*pair) for pair in zip(trainers, rates, strict=True)]
        if len(trainers) > 1:
            methods.append(self._lookup())
        calibration = as_calibration(trees, model_name, self.options.precision)
        at_layer = latency.at_layer(firp.frozen.prediction_layer) if latency else None
        findings = Findings(
            model_name=model_name,
            num_hidden_layers=firp.frozen.config.num_hidden_layers,
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

    def _tell(self, trainer: Trainer, text: str) -> None:
        texts = list(self.sequences)
        self.progress(f"measuring {trainer.heads.method}, {text}", texts.index(text), len(texts))

    def _method(self, trainer: Trainer, rates: dict[str, MethodRates]) -> MethodFindings:
        independent = {text: found.independent for text, found in rates.items()}
        corrected = {text: found.corrected for text, found in rates.items()}
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
        for name, sequences in self.sequences.items():
            plain = [
                Drafted(sequence.tokens.tolist(), sequence.prompt_tokens, {}, {}, {})
                for sequence in sequences
            ]
            trees = [TreeConfig.lookup(rows) for rows in REPORT_ROWS]
            replays = [replay_drafter(plain, tree, 0) for tree in trees]
            found[name] = tuple(round(replayed.tokens_per_step, 4) for replayed in replays)
        return MethodFindings("prompt lookup", None, (), found, {})


def _spread(windows: np.ndarray) -> np.ndarray:
    """Windows from all over, SEQUENCES at most, cut to LENGTH."""
    return windows[np.linspace(0, len(windows) - 1, min(SEQUENCES, len(windows))).astype(int), :LENGTH]


def _prompt_tokens(windows: np.ndarray) -> int:
    return max(1, int(windows.shape[1] * PROMPT_SHARE))


def _rank(
    trainer: Trainer, sequences: list[TokenSequence], correction: PathCorrection, greedy: bool
) -> Ranked:
    recorded = record(trainer.frozen, trainer.heads, sequences)
    independent = _dynamic(rank(recorded, None, greedy))
    drafted = rank(recorded, correction, greedy)
    return Ranked(MethodRates(independent, _dynamic(drafted)), drafted)


def _firp_text(
    firp: Trainer,
    sequences: list[TokenSequence],
    correction: PathCorrection,
    greedy: bool,
    static_trees: list[TreeConfig],
) -> FirpText:
    k = firp.options.num_predictors
    rates, drafted = _rank(firp, sequences, correction, greedy)
    shares = acceptance_by_rank(drafted, k)[:, :_RANKS_SHOWN]
    return FirpText(
        rates=rates,
        trees=candidates(drafted, k),
        static=tuple(_rate(drafted, tree) for tree in static_trees),
        acceptance=tuple(tuple(row) for row in shares.round(4).tolist()),
    )


def _dynamic(sequences: list[Drafted]) -> tuple[float, ...]:
    return tuple(_rate(sequences, TreeConfig("dynamic", rows, None)) for rows in REPORT_ROWS)


def _rate(sequences: list[Drafted], tree: TreeConfig) -> float:
    return round(replay(sequences, tree).tokens_per_step, 4)


def _speedups(found: tuple[Candidate, ...], latency: LatencyTable, k: int) -> tuple[tuple[int, float], ...]:
    """The best expected speedup of greedy decoding at each tree size."""
    best: dict[int, float] = {}
    for candidate in found:
        rows = candidate.tree.rows
        best[rows] = max(best.get(rows, 0.0), predicted_speedup(candidate, latency, k, "greedy"))
    return tuple((rows, round(speedup, 3)) for rows, speedup in sorted(best.items()))
