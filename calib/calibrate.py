"""From a model directory and text to a predictor directory: data, prediction layer, training,
trees, report.

In: `CalibrationRequest`. Out: a directory that appears whole or not at all
(firp.export.bundle.predictor_dir, and the report). Every stage is kept in a `SavedRun` beside the target,
so a run that was stopped goes on where it was, with the same result.
"""

import functools
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from firp.calib.replay.evaluation import Evaluated, Evaluation
from firp.calib.replay.layer_sweep import SHARE, layers_to_try
from firp.calib.report.findings import LayerFindings
from firp.calib.report.report import write_report
from firp.calib.text.continuations import write_text
from firp.calib.text.documents import (
    HELD_OUT_SHARE,
    ChatTemplate,
    Dataset,
    load_documents,
    make_dataset,
    split_prompts,
)
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import EarlyExit, FirpPredictors, Heads, Medusa
from firp.calib.training.memory import check_memory, memory_errors
from firp.calib.training.options import AUTO, TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.saved_run import SavedRun
from firp.calib.training.trainer import Trainer, TrainProgress
from firp.export.bundle.predictor_dir import FORMAT_VERSION, MARKER, Accuracy, PredictorInfo, write_predictors
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.huggingface import open_checkpoint
from firp.export.target_folder import check_target, disk_errors, target_folder
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.loop.text import check_text, load_tokenizer
from firp.runtime.progress import Progress, silent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.tuning.latency import measure_latency

# options that a resumed run may change
RESUMABLE_CHANGES = ("learning_rate", "batch", "accumulate", "anchors")


@dataclass(frozen=True)
class CalibrationRequest:
    model: Path
    output: Path
    data: tuple[Path, ...] = ()  # text files, .jsonl, directories
    # the model continues these, and trains on what it wrote
    prompts: tuple[list[int], ...] | tuple[str, ...] = ()
    options: TrainOptions = field(default_factory=TrainOptions)
    latency: LatencyTable | None = None  # of the target device; None: measured here, where this is a CPU
    resume: bool = False


def calibrate(
    request: CalibrationRequest, progress: Progress | None = None, cancel: threading.Event | None = None
) -> PredictorInfo:
    """Train predictors and path correction, calibrate trees, write the directory and its report.

    cancel: when set, the run stops after its current step and can be resumed. Raises FirpError: bad
    model, data, options or target; not enough memory; training diverged; interrupted.
    """
    check_target(request.output, MARKER)
    checkpoint = open_checkpoint(request.model)
    wanted = request.options.prediction_layer
    default_layer = checkpoint.prediction_layer(None if wanted == AUTO else wanted)
    lowest = layers_to_try(checkpoint.config.num_hidden_layers)[0] if wanted == AUTO else default_layer
    window, needed = (
        min(request.options.window, checkpoint.config.max_position_embeddings),
        2 * request.options.num_predictors + 2,
    )
    if window < needed:
        raise FirpError(
            "context too short to train on", got=f"{window} tokens", expected=f"at least {needed}"
        )
    check_device(request.options.device)
    check_memory(checkpoint, request.options, lowest)
    tokenizer = _tokenizer(request.model)
    if not request.data and not request.prompts:
        raise FirpError(
            "nothing to calibrate on",
            got="no data",
            expected="text files, or prompts that the model continues",
        )
    documents = (
        load_documents(list(request.data), tokenizer, ChatTemplate(request.model)) if request.data else []
    )
    prompts = [
        tokenizer.encode(check_text(each)).ids if isinstance(each, str) else list(each)
        for each in request.prompts
    ]
    _check_ids([*documents, *prompts], checkpoint.config.vocab_size)
    if request.latency and request.latency.num_hidden_layers != checkpoint.config.num_hidden_layers:
        got, expected = f"{request.latency.num_hidden_layers} layers", checkpoint.config.num_hidden_layers
        raise FirpError(
            "latency table of another model",
            got=got,
            expected=expected,
            fix="measure it with firp tune --json",
        )
    saved = SavedRun(request.output, _identity(request, checkpoint, documents, prompts), request.resume)
    saved.save()  # from here on the output is taken: another run is refused at once
    try:
        with memory_errors(request.options), disk_errors(request.output):
            run = _Run(request, checkpoint, saved, progress or silent, cancel)
            return run.finish(default_layer, documents, prompts)
    finally:
        if not saved.stages:
            saved.remove()


def check_device(device: str) -> None:
    """Raises FirpError for a device that this machine lacks, or that is neither a CPU nor a CUDA
    GPU.
    """
    try:
        if torch.empty(1, device=device).device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither cpu nor cuda")
    except (RuntimeError, AssertionError) as error:
        raise FirpError(
            "cannot use the device", got=f"{device}: {str(error).splitlines()[0]:.100}", fix="--device cpu"
        ) from error


def _tokenizer(model_dir: Path):
    file = model_dir / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            "the model has no tokenizer", got=f"'{model_dir}' without tokenizer.json", fix="add it"
        )
    return load_tokenizer(file)


def _check_ids(sequences: list[list[int]], vocab_size: int) -> None:
    """Raises FirpError for a token that the model has no embedding for."""
    for ids in sequences:
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise FirpError(
                "token id out of range", got=f"{min(ids)} to {max(ids)}", expected=f"0 to {vocab_size - 1}"
            )


def _identity(
    request: CalibrationRequest, checkpoint: Checkpoint, documents: list, prompts: list
) -> dict[str, Any]:
    """What a run must share with an unfinished one to go on with it. Sizes of a step may change:
    lower ones help out of a crash.
    """
    options = {
        name: value for name, value in asdict(request.options).items() if name not in RESUMABLE_CHANGES
    }
    data = hashlib.sha256(json.dumps([documents, prompts]).encode()).hexdigest()
    latency = asdict(request.latency) if request.latency else None
    return {"model": checkpoint.fingerprint(), "data": data, "latency": latency, **options}


class _Run:
    """One calibration, stage by stage; what a stage found is in `saved` and is not found again."""

    def __init__(
        self, request: CalibrationRequest, checkpoint: Checkpoint, saved: SavedRun, progress: Progress, cancel
    ):
        self.request, self.options, self.checkpoint = request, request.options, checkpoint
        self.saved, self.cancel, self.show = saved, cancel, progress
        self.progress("loading the model", 0, 1)
        dtype = getattr(torch, self.options.precision)
        try:
            model = AutoModelForCausalLM.from_pretrained(request.model, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError("the model does not load", got=str(error).splitlines()[0][:200]) from error
        self.model = model.to(self.options.device)

    def finish(
        self, default_layer: int, documents: list[list[int]], prompts: list[list[int]]
    ) -> PredictorInfo:
        dataset = self._dataset(documents, prompts)
        evaluation = Evaluation(
            self.model, dataset, self.options, self.checkpoint.eos_token_ids, self.progress
        )
        latency = self._latency(default_layer)
        layer, swept = default_layer, ()
        options = replace(self.options, prediction_layer=default_layer)
        if self.options.prediction_layer == AUTO:
            swept = self._sweep(dataset, evaluation, latency)
            layer = max(swept, key=lambda each: each.speedup).prediction_layer
            options = _share_of(replace(self.options, prediction_layer=layer), 1 - SHARE)
        trainers = [self._train(FirpPredictors, layer, dataset, options)]
        if self.options.baselines:  # the same steps, whatever time they take
            options = replace(options, steps=trainers[0].step, minutes=None)
            trainers += [self._train(method, layer, dataset, options) for method in (Medusa, EarlyExit)]
        evaluated = evaluation.findings(trainers, self.request.model.resolve().name, swept, latency)
        with target_folder(self.request.output, MARKER) as folder:
            info = self._write(folder, trainers[0], dataset, evaluated)
        self.saved.remove()
        return info

    def _dataset(self, documents: list[list[int]], prompts: list[list[int]]) -> Dataset:
        ends = self.checkpoint.eos_token_ids
        window = min(self.options.window, self.checkpoint.config.max_position_embeddings)
        own_text = ([], [])
        if prompts:
            tokens, shares = (
                self.options.own_tokens,
                zip(split_prompts(prompts), (1 - HELD_OUT_SHARE, HELD_OUT_SHARE), strict=True),
            )
            write = functools.partial(
                write_text,
                self.model,
                window=window,
                seed=self.options.seed,
                ends=ends,
                progress=self.progress,
            )
            own_text = self._stage(
                "own text", lambda: tuple(write(each, tokens=int(tokens * share)) for each, share in shares)
            )
        return make_dataset(documents, window, ends[0] if ends else None, own_text)

    def _latency(self, layer: int) -> LatencyTable | None:
        """The one given, or that of this machine when it is a CPU that trains."""
        if self.request.latency or torch.device(self.options.device).type != "cpu":
            return self.request.latency
        return LatencyTable(**self._stage("latency", lambda: asdict(self._measure_latency(layer))))

    def _measure_latency(self, layer: int) -> LatencyTable:
        """Of an export that is thrown away: how long guesses take does not depend on what they are."""
        k, config, rank = self.options.num_predictors, self.checkpoint.config, self.options.correction_rank
        tables, scales = np.zeros((config.vocab_size, rank), np.float32), np.ones((2, k), np.float32)
        with tempfile.TemporaryDirectory() as scratch:
            predictors, bundle = Path(scratch) / "predictors", Path(scratch) / "bundle"
            predictors.mkdir()
            info = self._info(layer, {}, Accuracy((), (), (), (), 0), rank)
            weight = np.tile(np.eye(config.hidden_size, dtype=np.float32), (k, 1, 1))
            write_predictors(predictors, info, weight, PathCorrection(tables, tables, scales, scales))
            try:
                export_bundle(ExportOptions(self.request.model, bundle, predictors), progress=self.progress)
            except FirpError as error:
                what = f"cannot measure latency here: {error.what}"
                raise FirpError(
                    what, got=error.got, expected=error.expected, fix="give the target's table with --latency"
                ) from error
            return measure_latency(Engine.load(bundle, check_hashes=False), self.progress)

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
            LayerFindings(**self._stage(f"sweep, layer {layer}", lambda at=layer: findings_at(at)))
            for layer in layers
        )

    def _train(self, method: type[Heads], layer: int, dataset: Dataset, options: TrainOptions) -> Trainer:
        frozen = FrozenModel(self.model, layer, self.checkpoint.config.sliding_window)
        torch.manual_seed(options.seed)
        heads = method(options.num_predictors, self.checkpoint.config.hidden_size).to(options.device)
        embeddings = self.model.get_input_embeddings().weight
        tables = PathTables(embeddings, options.num_predictors, options.correction_rank).to(options.device)
        trainer = Trainer(frozen, heads, tables, dataset.training, options)
        stage = _stage_name(trainer)
        if stage in self.saved.stages:
            trainer.restore(self.saved.stages[stage])

        def report(state: TrainProgress) -> None:
            losses = " ".join(f"{loss:.2f}" for loss in state.loss)
            if self.saved.due:
                self._keep(trainer)
            what = f"training {method.method} at layer {layer}: step {state.step}, loss {losses}"
            self.progress(what, int(state.done * 1000), 1000)

        try:
            trainer.run(report)
        finally:
            if trainer.settled:
                self._keep(trainer)
        return trainer

    def _keep(self, trainer: Trainer) -> None:
        self.saved.stages[_stage_name(trainer)] = trainer.state()
        self.saved.save()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show progress; the place at which a run stops when it is cancelled."""
        self.show(stage, done, total)
        if self.cancel is not None and self.cancel.is_set():
            kept = f", what was finished is kept in '{self.saved.path}'" if self.saved.stages else ""
            fix = (
                "repeat the command with --resume to go on" if kept else "start again: no stage was finished"
            )
            raise FirpError("interrupted", got=f"'{stage}'{kept}", fix=fix)

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.saved.stages:
            self.saved.stages[name] = make()
            self.saved.save()
        return self.saved.stages[name]

    def _info(self, layer: int, training: dict[str, Any], held_out: Accuracy, rank: int) -> PredictorInfo:
        return PredictorInfo(
            format_version=FORMAT_VERSION,
            method=FirpPredictors.method,
            num_predictors=self.options.num_predictors,
            prediction_layer=layer,
            hidden_size=self.checkpoint.config.hidden_size,
            correction_rank=rank,
            model_name=self.request.model.resolve().name,
            model_fingerprint=self.checkpoint.fingerprint(),
            training=training,
            held_out=held_out,
        )

    def _write(self, folder: Path, trainer: Trainer, dataset: Dataset, evaluated: Evaluated) -> PredictorInfo:
        request, options = self.request, self.options
        training = asdict(options) | {
            "data": [path.name for path in request.data[:10]],
            "files": len(request.data),
            "prompts": len(request.prompts),
            "tokens": dataset.tokens,
            "steps": trainer.step,
            "minutes": round(trainer.seconds / 60, 2),
        }
        info = self._info(
            trainer.frozen.prediction_layer,
            training,
            evaluated.findings.methods[0].accuracy,
            options.correction_rank,
        )
        weight = trainer.heads.weight.detach().cpu().numpy()
        write_predictors(folder, info, weight, evaluated.correction, evaluated.calibration)
        write_report(folder, evaluated.findings)
        return info


def _share_of(options: TrainOptions, share: float) -> TrainOptions:
    if options.steps is not None:
        return replace(options, steps=max(1, round(options.steps * share)))
    return replace(options, minutes=options.minutes * share)


def _stage_name(trainer: Trainer) -> str:
    options = trainer.options
    budget = f"{options.minutes:g} minutes" if options.steps is None else f"{options.steps} steps"
    return f"{trainer.heads.method}, layer {trainer.frozen.prediction_layer}, {budget}"
