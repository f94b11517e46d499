"""SmolLM2-135M-Instruct from its file: FIRP_REAL_MODEL names it; without it, these tests are skipped."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify_or_fail
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams

pytestmark = pytest.mark.real

QUESTIONS = ("What is gravity?", "Write a Python function that adds two numbers.", "Name three colours.")
# Ids of the tokenizer.json that the model was published with: digits stand alone, spaces before them too
PUBLISHED = {
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.fixture(scope="module")
def bundle(real_model, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("real") / "bundle"
    export_bundle(ExportOptions(real_model, bundle), lambda folder: verify_or_fail(folder, real_model))
    return bundle


def test_ids_are_those_of_the_published_tokenizer(real_model):
    tokenizer = open_checkpoint(real_model).tokenizer()
    assert {text: tokenizer.encode(text).ids for text in PUBLISHED} == PUBLISHED


def test_a_verified_bundle_answers_as_transformers_does(real_model, bundle):
    engine = Engine.load(bundle)
    model = AutoModelForCausalLM.from_pretrained(
        real_model.parent, gguf_file=real_model.name, dtype=torch.float32
    ).eval()
    for question in QUESTIONS:
        prompt = engine.tokenizer.encode(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ).ids
        ids = torch.tensor([prompt])
        ends = list(engine.bundle.eos_token_ids)
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False, eos_token_id=ends
        )
        found = engine.generate(prompt, SamplingParams(max_new_tokens=48)).token_ids
        assert found == expected[0, len(prompt) :].tolist()
