"""Trainings of one model on one text, to be compared: each is run once, and what it found is kept.

In: a request as of `firp calibrate`, whose options all runs share, and prompts to hold out. Out: the
report of a training as `firp calibrate` writes it. The model is frozen, so its rows are computed once
for all prediction layers, and what it decodes for the evaluation once for all runs.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from firp.calib.calibrate.request import CalibrationRequest, identity, prepare
from firp.calib.replay.evaluation import Evaluation
from firp.calib.replay.layer_sweep import layers_to_try
from firp.calib.text.continuations import Writer, write_text, writer_for
from firp.calib.text.documents import Dataset, make_dataset
from firp.calib.training.device import threads_for
from firp.calib.training.frozen_model import FrozenModel, RealRows
from firp.calib.training.heads import EarlyExit, FirpPredictors, Heads, Medusa
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore, StoredRows
from firp.calib.training.trainer import Trainer, TrainProgress
from firp.export.bundle.predictor_dir import STORED, TENSOR_NAME, open_predictors
from firp.export.weights.torch_model import read_tensor, torch_model
from firp.runtime.bundle.format import CORRECTION_NAME
from firp.runtime.trees.path_correction import PathCorrection

# of own text: small differences are compared, so more is held out than in a calibration
HELD_OUT_SHARE = 0.25
EVALUATED, FITTED = 20, 8  # windows of own text: an evaluation costs as much as fifty steps
SHOWN_STEPS = 10  # between two lines on how a training goes


class StackedModel(FrozenModel):
    """Split at the lowest layer that is compared. The `hidden` of its rows, [B, S, layers * D], are
    the inputs of all upper layers side by side, so that they serve a split at any of them.
    """

    def real_rows(self, input_ids: Tensor, trace: list[Tensor] | None = None) -> RealRows:
        states: list[Tensor] = []
        real = super().real_rows(input_ids, states)
        return real._replace(hidden=torch.cat(states, -1))

    def at_layer(self, stacked: RealRows, layer: int) -> RealRows:
        """What a model that is split at this layer would have computed."""
        size = stacked.final.shape[-1]
        start = (layer - self.prediction_layer) * size
        keys = {index: pair for index, pair in stacked.keys.items() if index >= layer}
        return RealRows(stacked.hidden[..., start : start + size], stacked.final, keys)


class SharedRows(RowStore):
    """Training rows in one file for all layers; those of `layer` are read."""

    def __init__(self, lowest: StackedModel, windows, folder: Path):
        super().__init__(lowest, windows, folder)
        self.lowest = lowest
        self.layer = lowest.prediction_layer

    def rows(self, chosen: Tensor) -> StoredRows:
        stored = super().rows(chosen)
        return stored._replace(real=self.lowest.at_layer(stored.real, self.layer))


class SharedModel(FrozenModel):
    """Split at one layer, with rows that models split elsewhere may have computed before."""

    def __init__(self, lowest: StackedModel, prediction_layer: int, known: dict[bytes, RealRows]):
        super().__init__(lowest.model, lowest.checkpoint, prediction_layer)
        self.lowest = lowest
        self.known = known

    def real_rows(self, input_ids: Tensor, trace: list[Tensor] | None = None) -> RealRows:
        key = bytes(str(input_ids.shape), "ascii") + input_ids.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.lowest.real_rows(input_ids)
        stacked = self.known[key]
        if trace is not None:
            layers = range(self.prediction_layer, self.config.num_hidden_layers + 1)
            trace += [self.lowest.at_layer(stacked, layer).hidden for layer in layers]
        return self.lowest.at_layer(stacked, self.prediction_layer)


class StoredTables(PathTables):
    """A path correction that was trained before."""

    def __init__(self, embeddings: Tensor, num_predictors: int, correction: PathCorrection):
        super().__init__(embeddings, num_predictors, correction.previous.shape[1])
        self.correction = correction

    def finish(self) -> PathCorrection:
        return self.correction


class Runs:
    """What is trained on, and the reports of what was trained."""

    def __init__(self, request: CalibrationRequest, held_out: tuple, folder: Path):
        """held_out: prompts whose continuations are measured on, where request.prompts are there to
        train on; folder: where reports are kept, and read instead of training again.
        """
        self.held_out_prompts = len(held_out)
        self.request = replace(request, prompts=request.prompts + held_out)
        self.folder = folder
        self.prepared = prepare(self.request)
        self.layers = self.prepared.checkpoint.config.num_hidden_layers
        self.known: dict[bytes, RealRows] = {}  # of what is evaluated on

    @property
    def layer(self) -> int:
        """The prediction layer of runs that do not say another."""
        return self.prepared.default_layer

    def report(self, name: str, **changes: Any) -> dict[str, Any]:
        """Train with these options; the other heads as well, where `baselines` is one of them."""
        options = replace(self.request.options, **{"prediction_layer": self.layer} | changes)
        whole = f"{name}_baselines"
        if (self.folder / f"{whole}.json").is_file():  # it says all that is asked for
            options = replace(options, baselines=True)

        def run() -> dict[str, Any]:
            trainers = [self._train(FirpPredictors, options)]
            if options.baselines:
                same = replace(options, steps=trainers[0].step, minutes=None)
                trainers += [self._train(method, same) for method in (Medusa, EarlyExit)]
            return self._evaluate(trainers, options)

        return self._kept(whole if options.baselines else name, self._measured_on(options), run)

    def stored_report(self, name: str, path: Path) -> dict[str, Any]:
        """The same of predictors that were trained before, measured on this held-out text."""
        predictors = open_predictors(path, self.prepared.checkpoint)
        info = predictors.info
        correction = PathCorrection.load(
            predictors.files[CORRECTION_NAME], self.prepared.checkpoint.config.vocab_size, info.num_predictors
        )

        options = replace(
            self.request.options, num_predictors=info.num_predictors, prediction_layer=info.prediction_layer
        )

        def run() -> dict[str, Any]:
            heads = FirpPredictors(info.num_predictors, info.hidden_size)
            with torch.no_grad():
                heads.weight.copy_(read_tensor(TENSOR_NAME, predictors.tensor, torch.float32))
            tables = StoredTables(self._embeddings, info.num_predictors, correction)
            trainer = Trainer(self._model_at(info.prediction_layer), heads, tables, self.rows, options)
            trainer.step = info.training["steps"]
            trainer.seconds = info.training["minutes"] * 60
            return self._evaluate([trainer], options)

        return self._kept(name, self._measured_on(options) | {"training": info.training}, run)

    @cached_property
    def model(self):
        tell("loading the model")
        return torch_model(self.prepared.checkpoint, getattr(torch, self.request.options.precision))

    @cached_property
    def write(self) -> Writer:
        return writer_for(self.request.model, self.model)

    @cached_property
    def dataset(self) -> Dataset:
        ends = self.prepared.ends
        options = self.request.options
        made_with = {"own_tokens": options.own_tokens, "window": options.window, "seed": options.seed}
        own_text = self._kept("own_text", made_with, self._own_text) if self.held_out_prompts else ([], [])
        return make_dataset(self.prepared.documents, self._window, ends[0] if ends else None, own_text)

    @cached_property
    def evaluation(self) -> Evaluation:
        held_out, training = self.dataset.held_out, self.dataset.training
        if self.held_out_prompts:
            held_out, training = spread(held_out, EVALUATED), spread(training, FITTED)
        dataset = Dataset(training, held_out, self.dataset.tokens)
        found = Evaluation(self.write, dataset, self.request.options, self.prepared.ends, tell)
        if self.held_out_prompts:  # what is held out was written by the model: no third kind of text
            found.sequences = {text: found.sequences[text] for text in ("greedy", "sampled")}
        return found

    @cached_property
    def lowest(self) -> StackedModel:
        layer = min(self.layer, layers_to_try(self.layers)[0])
        return StackedModel(self.model, self.prepared.checkpoint, layer)

    @cached_property
    def rows(self) -> SharedRows:
        return SharedRows(self.lowest, self.dataset.training, self.folder)

    @property
    def _window(self) -> int:
        return min(self.request.options.window, self.prepared.checkpoint.config.max_position_embeddings)

    @property
    def _embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def _model_at(self, layer: int) -> SharedModel:
        if layer < self.lowest.prediction_layer:
            lowest = self.lowest.prediction_layer
            raise click.ClickException(f"layer {layer} is below {lowest}, the lowest one compared")
        return SharedModel(self.lowest, layer, self.known)

    def _measured_on(self, options: TrainOptions) -> dict[str, Any]:
        latency = self.request.latency
        return asdict(options) | {"latency": asdict(latency) if latency else None}

    def _own_text(self) -> tuple[list[list[int]], list[list[int]]]:
        """Continuations to train on, and continuations of the prompts that are held out."""
        prompts = self.prepared.prompts
        tokens = self.request.options.own_tokens
        held_out = int(tokens * HELD_OUT_SHARE)
        write = partial(
            write_text,
            self.write,
            window=self._window,
            seed=self.request.options.seed,
            ends=self.prepared.ends,
            progress=tell,
        )
        return (
            write(prompts[: -self.held_out_prompts], tokens=tokens - held_out),
            write(prompts[-self.held_out_prompts :], tokens=held_out),
        )

    def _train(self, method: type[Heads], options: TrainOptions) -> Trainer:
        layer, k = options.prediction_layer, options.num_predictors
        size = self.prepared.checkpoint.config.hidden_size
        torch.manual_seed(options.seed)
        heads = method(k, size)
        tables = PathTables(self._embeddings, k, options.correction_rank)
        self.rows.layer = layer
        trainer = Trainer(self._model_at(layer), heads, tables, self.rows, options)

        def show(state: TrainProgress) -> None:
            if state.step % SHOWN_STEPS == 0:
                losses = " ".join(f"{loss:.2f}" for loss in state.loss)
                seconds = trainer.seconds / trainer.step
                tell(
                    f"training {method.method}, layer {layer}, K {k}: step {state.step}, loss {losses}, "
                    f"{seconds:.2f} s a step"
                )

        with threads_for(options.batch * min(options.anchors, self._window) * k, size):
            trainer.run(show)
        heads.round_to(getattr(torch, STORED))  # what is measured is what would be stored
        return trainer

    def _evaluate(self, trainers: list[Trainer], options: TrainOptions) -> dict[str, Any]:
        self.evaluation.options = options
        name = self.prepared.checkpoint.name
        return asdict(self.evaluation.findings(trainers, name, (), self.request.latency).findings)

    def _kept(self, name: str, made_with: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What was found under this name, or is found now. Raises ClickException for one that was
        made with something else.
        """
        path = self.folder / f"{name}.json"
        source = identity(self.request, self.prepared)
        made_with |= {"model": source["model"], "data": source["data"], "held_out": self.held_out_prompts}
        made_with = json.loads(json.dumps(made_with))
        if path.is_file():
            kept = json.loads(path.read_text("utf-8"))
            if kept["made_with"] != made_with:
                raise click.ClickException(f"'{path}' was made with other options or data; remove it")
            return kept["found"]
        found = json.loads(json.dumps(make()))
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps({"made_with": made_with, "found": found}), "utf-8")
        partial_path.replace(path)
        return found


def spread(windows: np.ndarray, count: int) -> np.ndarray:
    """So many windows from all over, or all of them."""
    return windows[np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)]


def tell(stage: str, done: int = 0, total: int = 0) -> None:
    """Show how far a run is."""
    print(f"{stage} ({done} of {total})" if total else stage, file=sys.stderr, flush=True)
