"""The run of a calibration: data, prediction layer, training, trees, report.

In: `CalibrationRequest`. Out: a directory that appears whole or not at all
(firp.export.bundle.predictor_dir, and the report). Every stage is kept in a `SavedRun` beside the
target, so a run that was stopped goes on where it was, with the same result.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from firp.calib.calibrate.request import CalibrationRequest, Prepared, identity, prepare
from firp.calib.replay.evaluation import Evaluated, Evaluation
from firp.calib.replay.latency import latency_here
from firp.calib.replay.layer_sweep import SHARE, layers_to_try
from firp.calib.report.findings import LayerFindings
from firp.calib.report.report import write_report
from firp.calib.text.continuations import write_text, writer_for
from firp.calib.text.documents import HELD_OUT_SHARE, Dataset, make_dataset, split_prompts
from firp.calib.training.device import threads_for
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import EarlyExit, FirpPredictors, Heads, Medusa
from firp.calib.training.memory import memory_errors
from firp.calib.training.options import AUTO, TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore
from firp.calib.training.saved_run import SavedRun
from firp.calib.training.trainer import Trainer, TrainProgress
from firp.export.bundle.draft_tokens import COUNT, most_frequent
from firp.export.bundle.predictor_dir import (
    FORMAT_VERSION,
    MARKER,
    STORED,
    Accuracy,
    PredictorInfo,
    write_predictors,
)
from firp.export.target_folder import disk_errors, target_folder
from firp.export.weights.fingerprint import fingerprint
from firp.export.weights.torch_model import torch_model
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.errors import FirpError


class CalibrationEvent(NamedTuple):
    """How far a calibration is."""

    stage: str
    done: int
    total: int
    training: TrainProgress | None = None  # after a step of training


def _tell_nobody(event: CalibrationEvent) -> None:
    """Take an event, and do nothing with it."""


def calibrate(
    request: CalibrationRequest,
    progress: Callable[[CalibrationEvent], None] = _tell_nobody,
    cancel: threading.Event | None = None,
) -> PredictorInfo:
    """Train predictors and path correction, calibrate trees, write the directory and its report.

    cancel: when set, the run stops after its current step and can be resumed. Raises FirpError: bad
    model, data, options or target; not enough memory; training diverged; interrupted.
    """
    prepared = prepare(request)
    saved = SavedRun(request.output, identity(request, prepared), request.resume)
    saved.save()  # from here on the output is taken: another run is refused at once
    o = request.options
    pseudo_rows = o.batch * min(o.anchors, o.window) * o.num_predictors
    threads = threads_for(pseudo_rows, prepared.checkpoint.config.hidden_size)
    try:
        with memory_errors(o), disk_errors(request.output), threads:
            return _Run(request, prepared, saved, progress, cancel).finish()
    finally:
        if not saved.stages:
            saved.remove()


class _Run:
    """One calibration, stage by stage; what a stage found is in `saved` and is not found again."""

    def __init__(
        self,
        request: CalibrationRequest,
        prepared: Prepared,
        saved: SavedRun,
        tell: Callable[[CalibrationEvent], None],
        cancel: threading.Event | None,
    ):
        self.request = request
        self.options = request.options
        self.prepared = prepared
        self.checkpoint = prepared.checkpoint
        self.saved = saved
        self.tell = tell
        self.cancel = cancel
        self.rows: RowStore | None = None  # of the layer that trains
        self.progress("loading the model", 0, 1)
        dtype = getattr(torch, self.options.precision)
        self.model = torch_model(self.checkpoint, dtype).to(self.options.device)
        self.write = writer_for(request.model, self.model)

    def finish(self) -> PredictorInfo:
        dataset = self._dataset()
        evaluation = Evaluation(self.write, dataset, self.options, self.prepared.ends, self.progress)
        layer = self.prepared.default_layer
        latency = self._latency(layer)
        swept: tuple[LayerFindings, ...] = ()
        options = replace(self.options, prediction_layer=layer)
        if self.options.prediction_layer == AUTO:
            swept = self._sweep(dataset, evaluation, latency)
            layer = max(swept, key=lambda found: found.speedup).prediction_layer
            options = _share_of(replace(self.options, prediction_layer=layer), 1 - SHARE)
        trainers = [self._train(FirpPredictors, layer, dataset, options)]
        if self.options.baselines:  # the same steps, whatever time they take
            options = replace(options, steps=trainers[0].step, minutes=None)
            trainers += [self._train(method, layer, dataset, options) for method in (Medusa, EarlyExit)]
        evaluated = evaluation.findings(trainers, self.checkpoint.name, swept, latency)
        with target_folder(self.request.output, MARKER) as folder:
            info = self._write(folder, trainers[0], dataset, evaluated)
        self.saved.remove()
        return info

    def _dataset(self) -> Dataset:
        ends = self.prepared.ends
        window = min(self.options.window, self.checkpoint.config.max_position_embeddings)
        own_text = self.saved.stage("own text", self._own_text) if self.prepared.prompts else ([], [])
        return make_dataset(self.prepared.documents, window, ends[0] if ends else None, own_text)

    def _own_text(self) -> tuple[list[list[int]], list[list[int]]]:
        """Continuations of prompts: those to train on, and those of other prompts, to hold out."""
        write = functools.partial(
            write_text,
            self.write,
            window=min(self.options.window, self.checkpoint.config.max_position_embeddings),
            seed=self.options.seed,
            ends=self.prepared.ends,
            progress=self.progress,
        )
        training, held_out = split_prompts(self.prepared.prompts)
        tokens = self.options.own_tokens
        return (
            write(training, tokens=int(tokens * (1 - HELD_OUT_SHARE))),
            write(held_out, tokens=int(tokens * HELD_OUT_SHARE)),
        )

    def _latency(self, layer: int) -> LatencyTable | None:
        """The one given, or that of this machine when it is a CPU that trains."""
        if self.request.latency or torch.device(self.options.device).type != "cpu":
            return self.request.latency
        return LatencyTable(**self.saved.stage("latency", lambda: asdict(self._measure_latency(layer))))

    def _measure_latency(self, layer: int) -> LatencyTable:
        info = self._info(layer, {}, Accuracy((), (), (), (), 0))
        return latency_here(self.request.model, self.checkpoint, info, self.progress)

    def _sweep(
        self, dataset: Dataset, evaluation: Evaluation, latency: LatencyTable | None
    ) -> tuple[LayerFindings, ...]:
        if latency is None:
            raise FirpError(
                "no latency table to choose a prediction layer with",
                got=f"device {self.options.device}",
                expected="--latency FILE",
                fix="print one on the target with firp tune BUNDLE --json",
            )
        layers = layers_to_try(self.checkpoint.config.num_hidden_layers)

        def findings_at(layer: int) -> dict[str, Any]:
            options = _share_of(replace(self.options, prediction_layer=layer), SHARE / len(layers))
            trainer = self._train(FirpPredictors, layer, dataset, options)
            self.saved.stages.pop(_stage_name(trainer))
            return asdict(evaluation.layer_findings(trainer, latency))

        return tuple(
            LayerFindings(**self.saved.stage(f"sweep, layer {layer}", lambda at=layer: findings_at(at)))
            for layer in layers
        )

    def _train(self, method: type[Heads], layer: int, dataset: Dataset, options: TrainOptions) -> Trainer:
        frozen = FrozenModel(self.model, self.checkpoint, layer)
        torch.manual_seed(options.seed)
        heads = method(options.num_predictors, self.checkpoint.config.hidden_size).to(options.device)
        embeddings = self.model.get_input_embeddings().weight
        tables = PathTables(embeddings, options.num_predictors, options.correction_rank).to(options.device)
        trainer = Trainer(frozen, heads, tables, self._rows(frozen, dataset), options)
        stage = _stage_name(trainer)
        if stage in self.saved.stages:
            trainer.restore(self.saved.stages[stage])

        def report(state: TrainProgress) -> None:
            losses = " ".join(f"{loss:.2f}" for loss in state.loss)
            if self.saved.due:
                self._keep(trainer)
            self._report(
                CalibrationEvent(
                    f"training {method.method} at layer {layer}: step {state.step}, loss {losses}",
                    int(state.done * 1000),
                    1000,
                    state,
                )
            )

        try:
            trainer.run(report)
        finally:
            if trainer.settled:
                self._keep(trainer)
        heads.round_to(getattr(torch, STORED))  # what is measured is what will be stored
        return trainer

    def _rows(self, frozen: FrozenModel, dataset: Dataset) -> RowStore:
        """The real rows at this layer: heads that are compared there share them."""
        if self.rows is None or self.rows.prediction_layer != frozen.prediction_layer:
            self.rows = None  # gives its disk back before another takes it
            self.rows = RowStore(frozen, dataset.training, self.request.output.parent)
        return self.rows

    def _keep(self, trainer: Trainer) -> None:
        self.saved.stages[_stage_name(trainer)] = trainer.state()
        self.saved.save()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage without steps is."""
        self._report(CalibrationEvent(stage, done, total))

    def _report(self, event: CalibrationEvent) -> None:
        """Tell the event; the place at which a run stops when it is cancelled."""
        self.tell(event)
        if self.cancel is not None and self.cancel.is_set():
            some = self.saved.stages or event.training  # which is kept as soon as the error leaves it
            kept = f", what was finished is kept in '{self.saved.path}'" if some else ""
            fix = (
                "repeat the command with --resume to go on" if kept else "start again: no stage was finished"
            )
            raise FirpError("interrupted", got=f"'{event.stage}'{kept}", fix=fix)

    def _info(self, layer: int, training: dict[str, Any], held_out: Accuracy) -> PredictorInfo:
        return PredictorInfo(
            format_version=FORMAT_VERSION,
            method=FirpPredictors.method,
            num_predictors=self.options.num_predictors,
            prediction_layer=layer,
            hidden_size=self.checkpoint.config.hidden_size,
            correction_rank=self.options.correction_rank,
            model_name=self.checkpoint.name,
            model_fingerprint=fingerprint(self.checkpoint),
            training=training,
            held_out=held_out,
        )

    def _write(self, folder: Path, trainer: Trainer, dataset: Dataset, evaluated: Evaluated) -> PredictorInfo:
        request = self.request
        training = asdict(self.options) | {
            "data": [path.name for path in request.data[:10]],
            "files": len(request.data),
            "prompts": len(request.prompts),
            "tokens": dataset.tokens,
            "steps": trainer.step,
            "minutes": round(trainer.seconds / 60, 2),
        }
        accuracy = evaluated.findings.methods[0].accuracy
        info = self._info(trainer.frozen.prediction_layer, training, accuracy)
        weight = trainer.heads.weight.detach().cpu().numpy()
        tokens = self._draft_tokens(dataset)
        write_predictors(folder, info, weight, evaluated.correction, evaluated.calibration, tokens)
        write_report(folder, evaluated.findings)
        return info

    def _draft_tokens(self, dataset: Dataset) -> np.ndarray | None:
        """Frequent tokens of the training text; None of a vocabulary that is decoded whole."""
        size = self.checkpoint.config.vocab_size
        if size <= 2 * COUNT:
            return None
        counts = np.bincount(dataset.training.ravel(), minlength=size)
        return most_frequent(counts, self.prepared.ends)


def _share_of(options: TrainOptions, share: float) -> TrainOptions:
    if options.steps is not None:
        return replace(options, steps=max(1, round(options.steps * share)))
    return replace(options, minutes=options.minutes * share)


def _stage_name(trainer: Trainer) -> str:
    options = trainer.options
    budget = f"{options.minutes:g} minutes" if options.steps is None else f"{options.steps} steps"
    return f"{trainer.heads.method}, layer {trainer.frozen.prediction_layer}, {budget}"
