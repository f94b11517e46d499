"""Predicted against real memory of a training step (firp.calib.training.memory), on random Llamas and this
machine's CPU.

    python benchmarks/memory.py

Each case is a process of its own; real is its peak resident size less what it had before the model
was there.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from table import Result
from transformers import AutoModelForCausalLM, LlamaConfig

from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.calib.training.memory import memory_needed
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore
from firp.calib.training.trainer import Trainer
from firp.export.sources.open import open_checkpoint
from firp.runtime.machine import peak_bytes

SIZES = {  # hidden, intermediate, layers, heads, key/value heads, vocabulary
    "25 M": (512, 1376, 6, 8, 4, 8000),
    "110 M": (768, 2048, 12, 12, 12, 32000),
}
STEPS = (
    {"batch": 1, "anchors": 64},
    {"batch": 4, "anchors": 128},
    {"batch": 4, "anchors": 128, "precision": "bfloat16"},
)


def config(hidden, intermediate, layers, heads, kv_heads, vocabulary) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )


def one_case(folder: str, options: TrainOptions) -> None:
    before = peak_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.precision))
    layer = model.config.num_hidden_layers * 3 // 4
    torch.manual_seed(0)
    heads = FirpPredictors(options.num_predictors, model.config.hidden_size)
    tables = PathTables(model.get_input_embeddings().weight, options.num_predictors, options.correction_rank)
    windows = np.random.default_rng(0).integers(0, model.config.vocab_size, (8, options.window))
    frozen = FrozenModel(model, open_checkpoint(Path(folder)), layer)
    with tempfile.TemporaryDirectory() as rows:
        Trainer(frozen, heads, tables, RowStore(frozen, windows, Path(rows)), options).run()
    print(json.dumps(peak_bytes() - before))


def main() -> None:
    result = Result("memory", "Memory of a training step, predicted against real")
    table = result.table("Random Llamas on the CPU", "model", "options", "predicted (GiB)", "real (GiB)")
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in SIZES.items():
            folder = Path(scratch) / name
            AutoModelForCausalLM.from_config(config(*size)).save_pretrained(folder)
            checkpoint = open_checkpoint(folder)
            for changes in STEPS:
                options = TrainOptions(minutes=None, steps=2, **changes)
                predicted = sum(memory_needed(checkpoint, options, size[2] * 3 // 4).values())
                arguments = [sys.executable, __file__, str(folder), json.dumps(changes)]
                real = json.loads(
                    subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
                )
                shown = ", ".join(f"{option} {value}" for option, value in changes.items())
                table.add(name, shown, f"{predicted / 2**30:.2f}", f"{real / 2**30:.2f}")
    result.write()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_case(sys.argv[1], TrainOptions(minutes=None, steps=2, **json.loads(sys.argv[2])))
    else:
        main()
