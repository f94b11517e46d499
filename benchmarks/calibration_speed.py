"""How fast calibration is: the model's own text, written by the runtime and by transformers; and steps of
training, on rows of the model that are computed, and on those that were kept.

    python benchmarks/calibration_speed.py MODEL PROMPTS.jsonl [--prompts 32] [--tokens 64] [--turns 3]

The writers take turns, each with all prompts at once. What the runtime's takes includes the bundle that
it writes for itself. Training runs twice over the same windows of random tokens. Prompts are one
message, or a text, a line.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from table import Result

from firp.calib.calibrate.request import CalibrationRequest, Prepared, prepare
from firp.calib.text.continuations import (
    CPU_BATCH,
    GPU_BATCH,
    SAMPLING_TEMPERATURE,
    Beginnings,
    RuntimeWriter,
    TransformersWriter,
    Writer,
)
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore
from firp.calib.training.trainer import Trainer
from firp.export.weights.torch_model import torch_model
from firp.runtime.prompts import read_prompts


def text_rates(writers: dict[str, Writer], prompts: list[list[int]], tokens: int, turns: int):
    """Tokens a second of each writer and temperature, by turn."""
    rates = {(name, heat): [] for heat in (0.0, SAMPLING_TEMPERATURE) for name in writers}
    for turn in range(turns):
        for (name, temperature), found in rates.items():
            began = time.perf_counter()
            texts = writers[name](Beginnings(prompts, tokens, temperature, turn, ()))
            seconds = time.perf_counter() - began
            found.append(sum(len(text.tokens) - text.prompt_tokens for text in texts) / seconds)
            print(f"{name}, temperature {temperature:g}: {found[-1]:.0f} tokens/s", flush=True)
    return rates


def step_seconds(prepared: Prepared, model, options: TrainOptions) -> list[float]:
    """Seconds of each step of training, half of which see their windows for the first time."""
    checkpoint = prepared.checkpoint
    size, k = checkpoint.config.hidden_size, options.num_predictors
    shape = options.steps // 2 * options.batch, options.window
    windows = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, shape)
    heads = FirpPredictors(k, size)
    tables = PathTables(model.get_input_embeddings().weight, k, options.correction_rank)
    frozen = FrozenModel(model, checkpoint, prepared.default_layer)
    seconds = []
    with tempfile.TemporaryDirectory() as rows:
        trainer = Trainer(frozen, heads, tables, RowStore(frozen, windows, Path(rows)), options)
        trainer.run(lambda _: seconds.append(trainer.seconds - sum(seconds)))
    return seconds


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=32, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="New ones of each prompt.")
@click.option("--turns", default=3, show_default=True)
@click.option("--steps", default=16, show_default=True, help="Of training, an even number.")
@click.option("--window", default=256, show_default=True)
def main(model, file, prompts, tokens, turns, steps, window):
    asked = tuple(prompt.content for prompt in read_prompts(file))[:prompts]
    prepared = prepare(CalibrationRequest(model, Path("calibration-speed"), prompts=asked))
    theirs = torch_model(prepared.checkpoint, torch.float32)
    writers = {
        f"transformers, {GPU_BATCH} together": TransformersWriter(theirs),
        f"the runtime, {CPU_BATCH} together": RuntimeWriter(model),
    }
    rates = text_rates(writers, prepared.prompts, tokens, turns)
    result = Result("calibration_speed", "How fast calibration is")
    caption = f"{len(asked)} prompts, {tokens} new tokens each: tokens a second, median of {turns} (spread)"
    table = result.table(caption, "writer", "temperature", "tokens/s")
    for (name, temperature), found in rates.items():
        table.add(name, f"{temperature:g}", spread(found, 0))
    options = TrainOptions(minutes=None, steps=steps, batch=2, anchors=96, window=window)
    seconds = step_seconds(prepared, theirs, options)
    caption = f"Steps of {options.batch} windows of {window} tokens, {options.anchors} anchors each"
    table = result.table(caption, "rows of the model", "seconds a step", "tokens of text a second")
    halves = {"computed": seconds[: steps // 2], "kept from before": seconds[steps // 2 :]}
    for name, found in halves.items():
        table.add(name, spread(found, 2), f"{options.batch * window / statistics.median(found):.0f}")
    result.write()


if __name__ == "__main__":
    main()
