"""ONNX graphs against Hugging Face in float64: logits of every family, and greedy tokens of the
demo model.

    python benchmarks/parity.py [--prompts 50] [--tokens 128]

Families are the small random models of the tests, each with random prompts in prefill, chained
decoding and a random tree. The demo model decodes held-out prompts plainly; Hugging Face `generate`
(eager, float32) decodes the same.
"""

import sys
import tempfile
from pathlib import Path

import click
import torch
from table import Result
from transformers import AutoModelForCausalLM, GenerationConfig, logging

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.verify.checks import verify
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams

STAGES = ("prefill", "decode", "tree")
ROOT = Path(__file__).parent.parent
DEMO_MODEL = ROOT / "tests" / "demo_model"
sys.path.insert(0, str(ROOT / "tests"))

from support.small_models import CONFIGS, make_model  # noqa: E402


def family_parity(folder: Path) -> dict[str, dict[str, float]]:
    """Largest distance of each family's logits from float64 in each stage, in units of Hugging
    Face's own (see firp.export.verify.rounding).
    """
    rows = {}
    for family in CONFIGS:
        model = make_model(folder / family, family)
        export_bundle(ExportOptions(model, folder / f"{family}-bundle"))
        rows[family] = _logit_distances(folder / f"{family}-bundle", model)
    export_bundle(ExportOptions(DEMO_MODEL, folder / "demo-bundle"))
    rows["demo model"] = _logit_distances(folder / "demo-bundle", DEMO_MODEL)
    return rows


def _logit_distances(bundle: Path, model: Path) -> dict[str, float]:
    checks = verify(bundle, model).checks
    worst = {}
    for check in checks:
        stage, _, rest = check.name.partition(" ")
        if rest.startswith("logits"):
            worst[stage] = max(worst.get(stage, 0.0), check.value)
    return worst


def greedy_parity(engine: Engine, prompts: list[list[int]], tokens: int) -> int:
    """Prompts whose plain tokens differ from those of Hugging Face generate."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32, attn_implementation="eager")
    eos = list(engine.bundle.eos_token_ids)
    model.generation_config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    differing = 0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()
        differing += engine.generate(prompt, SamplingParams(tokens), plain=True).token_ids != theirs
    return differing


@click.command()
@click.option("--prompts", default=50, show_default=True)
@click.option("--tokens", default=128, show_default=True)
def main(prompts, tokens):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        families = family_parity(Path(folder))
        engine = Engine.load(Path(folder) / "demo-bundle")
        texts = read_prompts(DEMO_MODEL / "held_out_prompts.jsonl")[:prompts]
        differing = greedy_parity(engine, [engine.encode(prompt.text) for prompt in texts], tokens)
    result = Result("parity", "ONNX graphs against Hugging Face, float32")
    table = result.table("Largest logit difference", "model", *STAGES)
    for family, stages in families.items():
        table.add(family, *(f"{stages[stage]:.1e}" for stage in STAGES))
    result.note(
        f"Plain tokens equal those of Hugging Face generate on {len(texts) - differing} of {len(texts)} "
        f"prompts x {tokens} tokens."
    )
    result.write()
    worst = max(value for stages in families.values() for value in stages.values())
    sys.exit(worst > 1e-4 or differing > 0)


if __name__ == "__main__":
    main()
