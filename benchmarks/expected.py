"""Expected against measured tokens per step: trees replayed on held-out text, and the same trees
decoded by the runtime.

    python benchmarks/expected.py MODEL PREDICTORS BUNDLE [--prompts 24] [--tokens 96]

Two comparisons. "Same text": the replay on what the model decoded from these prompts; it must take
the same steps, up to rounding. "Other text": what calibration.json promises, from the held-out part
of the calibration data.
"""

from pathlib import Path

import click
import numpy as np
import torch
from safetensors.numpy import load_file
from table import Result
from transformers import AutoModelForCausalLM

from firp.calib.replay.replay import rank, record, replay
from firp.calib.text.sequence import TokenSequence
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.export.sources.open import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
SHOWN = [(4, 0), (8, 0), (8, 1), (8, 3), (16, None)]  # rows, draft sources


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("predictors", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=24, show_default=True)
@click.option("--tokens", default=96, show_default=True)
def main(model, predictors, bundle, prompts, tokens):
    engine = Engine.load(bundle, threads=1)  # only tokens are counted
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    frozen = FrozenModel(torch_model, open_checkpoint(model), engine.manifest.prediction_layer)
    heads = FirpPredictors(engine.manifest.num_predictors, engine.model.hidden_size)
    heads.weight.data = torch.from_numpy(
        load_file(predictors / "predictors.safetensors")["predictors.weight"]
    )
    encoded = [engine.encode(prompt.text) for prompt in read_prompts(PROMPTS)[:prompts]]
    promised = {
        (c.tree.rows, c.tree.draft_sources): c
        for c in engine.bundle.calibration.candidates
        if c.tree.depth is None
    }
    result = Result("expected", "Tokens per step: decoded by the runtime, replayed, promised by calibration")
    for text, temperature in (("greedy", 0.0), ("sampled", 0.8)):
        params = SamplingParams(tokens, temperature=temperature)
        written = [engine.generate(prompt, params, plain=True).token_ids for prompt in encoded]
        sequences = [TokenSequence(np.array([*a, *b]), len(a)) for a, b in zip(encoded, written, strict=True)]
        drafted = rank(record(frozen, heads, sequences), engine.bundle.correction, temperature == 0)
        table = result.table(
            f"{text}, {len(encoded)} prompts x {tokens} tokens",
            *("rows", "draft sources", "decoded", "replay of the same text", "promised, from other text"),
        )
        for rows, sources in SHOWN:
            tree = promised[rows, sources].tree
            runs = [engine.generate(prompt, params, tree=tree).stats for prompt in encoded]
            measured = sum(run.decoded_tokens for run in runs) / sum(run.steps for run in runs)
            same = replay(drafted, tree).tokens_per_step
            other = promised[rows, sources].tokens_per_step[text]
            table.add(
                rows,
                {0: "draft pass", None: "T"}.get(sources, sources),
                f"{measured:.3f}",
                f"{same:.3f} ({same / measured - 1:+.2%})",
                f"{other:.3f} ({other / measured - 1:+.1%})",
            )
    result.write()


if __name__ == "__main__":
    main()
