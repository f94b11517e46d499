"""Expected against measured tokens per step: trees replayed on held-out text, and the same trees
decoded by the runtime.

    python benchmarks/expected.py MODEL PREDICTORS BUNDLE [--prompts 24] [--tokens 96]

Two comparisons. "Same text": the replay on what the model decoded from these prompts; it must take
the same steps, up to rounding. "Other text": what calibration.json promises, from the held-out part
of the calibration data.

Of a quantized bundle the chains are shown. What is replayed are then the drafts of the model in
float32 on the text that the bundle decoded: a difference is that of its drafts.
"""

from pathlib import Path

import click
import numpy as np
import torch
from safetensors.numpy import load_file
from table import Result
from transformers import AutoModelForCausalLM

from firp.calib.replay.drafters import replay_drafter
from firp.calib.replay.replay import rank, record
from firp.calib.text.sequence import TokenSequence
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.export.sources.open import open_checkpoint
from firp.runtime.commands.shown import describe
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import CHAIN, DRAFTERS, LOOKUP, TreeConfig

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
TREES = [TreeConfig(rows=rows, draft_sources=m) for rows, m in ((4, 0), (8, 0), (8, 1), (8, 3), (16, None))]
CHAINS = [
    *(TreeConfig(CHAIN, 4, sources, least=least) for sources in (0, 1) for least in (0.0, 0.1)),
    TreeConfig(CHAIN, 8, 0, drafters=(LOOKUP,), least=0.1),
    *(TreeConfig(CHAIN, 8, sources, drafters=DRAFTERS, least=0.1) for sources in (0, 1)),
]


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
    promised = {found.tree: found for found in engine.bundle.calibration.candidates}
    arithmetic = engine.manifest.arithmetic
    name = "expected" if not engine.manifest.quantization else f"expected_{arithmetic}"
    title = f"Tokens per step: decoded by the runtime in {arithmetic}, replayed, promised by calibration"
    result = Result(name, title)
    for text, temperature in (("greedy", 0.0), ("sampled", 0.8)):
        params = SamplingParams(tokens, temperature=temperature)
        written = [engine.generate(prompt, params, plain=True).token_ids for prompt in encoded]
        sequences = [TokenSequence(np.array([*a, *b]), len(a)) for a, b in zip(encoded, written, strict=True)]
        drafted = rank(record(frozen, heads, sequences), engine.bundle.correction, temperature == 0)
        table = result.table(
            f"{text}, {len(encoded)} prompts x {tokens} tokens",
            *("drafts", "decoded", "replay of the same text", "promised, from other text"),
        )
        for tree in CHAINS if engine.manifest.quantization else TREES:
            runs = [engine.generate(prompt, params, tree=tree).stats for prompt in encoded]
            measured = sum(run.decoded_tokens for run in runs) / sum(run.steps for run in runs)
            same = replay_drafter(drafted, tree, engine.manifest.num_predictors).tokens_per_step
            other = promised[tree].tokens_per_step[text]
            table.add(
                describe(tree),
                f"{measured:.3f}",
                f"{same:.3f} ({same / measured - 1:+.2%})",
                f"{other:.3f} ({other / measured - 1:+.1%})",
            )
    result.write()


if __name__ == "__main__":
    main()
