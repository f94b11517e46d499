"""Plain decoding gives the tokens of Hugging Face's `generate`, and the check says where not."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from firp.export.sources.open import open_checkpoint
from firp.export.verify import tokens
from firp.export.verify.reference import Reference
from firp.export.verify.tokens import plain_against_generate
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning.parity import PlainRun

COUNT = 32


@pytest.fixture
def reference_and_engine(family_bundle):
    folder, bundle = family_bundle("llama")
    return Reference(open_checkpoint(folder), "float32"), Engine.load(bundle)


def prompts_of(engine):
    rng = np.random.default_rng(4)
    return [rng.integers(2, engine.model.vocab_size, length).tolist() for length in (3, 17, 40)]


@pytest.mark.parametrize("family", ["llama", "llama3_rope", "mistral_window", "qwen2", "qwen3"])
def test_plain_decoding_is_generate(family, family_bundle):
    folder, bundle = family_bundle(family)
    engine = Engine.load(bundle)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    settings = GenerationConfig(max_new_tokens=COUNT, do_sample=False, eos_token_id=1, pad_token_id=0)
    for prompt in prompts_of(engine):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        ours = engine.generate(prompt, SamplingParams(COUNT), plain=True)
        assert ours.token_ids == theirs[0, len(prompt) :].tolist()


def test_right_runs_pass(reference_and_engine):
    reference, engine = reference_and_engine
    check = plain_against_generate("plain", engine, reference, prompts_of(engine), "float32")
    assert (check.passed, check.value, check.near_ties) == (True, 0, ())


@pytest.mark.parametrize("wrong", ["a token", "ends early", "goes on"])
def test_a_wrong_run_is_found(wrong, reference_and_engine, monkeypatch):
    reference, engine = reference_and_engine
    prompts = prompts_of(engine)
    real = tokens.plain_run

    def run(engine, prompt, params):
        found, margins = real(engine, prompt, params)
        if wrong == "a token":
            found = [*found[:5], (found[5] + 1) % 190, *found[6:]]
        elif wrong == "ends early":
            found = found[:9]
        elif wrong == "goes on":  # after an end of sequence that the bundle names
            engine.bundle = dataclasses.replace(engine.bundle, eos_token_ids=(found[3],))
        return PlainRun(found, margins)

    monkeypatch.setattr(tokens, "plain_run", run)
    check = plain_against_generate("plain", engine, reference, prompts[:1], "float32")
    assert (check.passed, check.value) == (False, 1)
