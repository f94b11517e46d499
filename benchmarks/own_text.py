"""How fast a model's own text is written, that calibration trains on: by the runtime, and by transformers.

    python benchmarks/own_text.py MODEL PROMPTS.jsonl [--prompts 32] [--tokens 64] [--turns 3]

The writers take turns, each with all prompts at once. What the runtime's takes includes the bundle that
it writes for itself. Prompts are one message, or a text, a line.
"""

import statistics
import time
from pathlib import Path

import click
import torch
from table import Result

from firp.calib.calibrate.request import CalibrationRequest, prepare
from firp.calib.text.continuations import (
    CPU_BATCH,
    GPU_BATCH,
    SAMPLING_TEMPERATURE,
    RuntimeWriter,
    TransformersWriter,
)
from firp.export.weights.torch_model import torch_model
from firp.runtime.prompts import read_prompts


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=32, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="New ones of each prompt.")
@click.option("--turns", default=3, show_default=True)
def main(model, file, prompts, tokens, turns):
    asked = tuple(prompt.content for prompt in read_prompts(file))[:prompts]
    prepared = prepare(CalibrationRequest(model, Path("own-text"), prompts=asked))
    writers = {
        f"transformers, {GPU_BATCH} together": TransformersWriter(
            torch_model(prepared.checkpoint, torch.float32)
        ),
        f"the runtime, {CPU_BATCH} together": RuntimeWriter(model),
    }
    rates = {(name, heat): [] for heat in (0.0, SAMPLING_TEMPERATURE) for name in writers}
    for turn in range(turns):
        for (name, temperature), found in rates.items():
            began = time.perf_counter()
            texts = writers[name](prepared.prompts, tokens, temperature, turn, ())
            seconds = time.perf_counter() - began
            found.append(sum(len(text.tokens) - text.prompt_tokens for text in texts) / seconds)
            print(f"{name}, temperature {temperature:g}: {found[-1]:.0f} tokens/s", flush=True)
    result = Result("own_text", "The model's own text")
    table = result.table(
        f"{len(asked)} prompts, {tokens} new tokens each: tokens a second, median of {turns} (spread)",
        "writer",
        "temperature",
        "tokens/s",
    )
    for (name, temperature), found in rates.items():
        spread = f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
        table.add(name, f"{temperature:g}", spread)
    result.write()


if __name__ == "__main__":
    main()
