"""Tokens that must be the same: plain decoding and Hugging Face's `generate`, drafted and plain.

In: an engine, and the Hugging Face model. Out: `Check`s that count the runs that differ.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from firp.export.verify.report import Check, Tie
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DRAFTERS, MAX_PASS_ROWS, TreeConfig
from firp.runtime.tuning.parity import NEAR_TIE, compare_trees, first_difference, plain_run

TEXTS = (
    "The quick brown fox jumps over the lazy dog. The dog",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Question: What is 12 plus 30?\nAnswer:",
)


def prompts_by_kind(engine: Engine, count: int, length: int) -> dict[str, list[list[int]]]:
    """Random tokens, and tokenized text where there is a tokenizer."""
    most = min(engine.model.max_position_embeddings // 2, most_rows(engine))
    shape = (count, min(length, most))
    rng = np.random.default_rng(0)
    kinds = {"random": rng.integers(0, engine.model.vocab_size, shape).tolist()}
    if engine.tokenizer:
        kinds["text"] = [engine.tokenizer.encode(text).ids[:most] for text in TEXTS[:count]]
    return kinds


def most_rows(engine: Engine) -> int:
    """Rows of the largest pass that decodes them all."""
    return engine.limits.max_rows if engine.limits else 64


def plain_against_generate(name: str, engine: Engine, model: Any, prompts: list[list[int]]) -> Check:
    """Runs that differ. One that parts at a near tie of the plain run is recorded and excused, as
    rarely as `NEAR_TIE` allows.
    """
    dtype = engine.manifest.precision.compute
    count = min(32, engine.model.max_position_embeddings - max(map(len, prompts)))
    greedy = SamplingParams(max_new_tokens=count)
    generated = _generate(model, prompts, count, engine.bundle.eos_token_ids)
    wrong = 0
    near = []
    for index, (prompt, theirs) in enumerate(zip(prompts, generated, strict=True)):
        difference = first_difference(index, plain_run(engine, prompt, greedy), theirs, greedy, dtype)
        wrong += difference is not None
        if difference and difference.near_tie:
            near.append(Tie("generate", difference))
    wrong -= min(len(near), math.ceil(len(prompts) * count * NEAR_TIE[dtype].per_token))
    return Check(name, wrong == 0, wrong, 0, tuple(near))


def _generate(model: Any, prompts: list[list[int]], count: int, eos: tuple[int, ...]) -> list[list[int]]:
    """Hugging Face's greedy tokens of each prompt, all prompts in one batch, padded on the left."""
    import torch
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config = GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=list(eos) or None, pad_token_id=0
    )
    runs = model.generate(ids, attention_mask=mask)[:, longest:].tolist()
    ends = [next((at + 1 for at, token in enumerate(run) if token in eos), len(run)) for run in runs]
    return [run[:end] for run, end in zip(runs, ends, strict=True)]


def trees_to_check(engine: Engine) -> dict[str, TreeConfig]:
    """One tree of every kind that the bundle can draft; without predictors by lookup alone."""
    k = engine.manifest.num_predictors
    if not k:
        return {"lookup": TreeConfig.lookup(rows=8)}
    return {
        "best tree": engine.best_tree,
        "draft pass": TreeConfig("dynamic", rows=6, draft_sources=0, depth=min(2, k)),
        "chain": TreeConfig.chain(k),
        "static tree": TreeConfig.static([(0,), (1,), *([(0, 0), (0, 1)] if k > 1 else [])], draft_sources=2),
        "dynamic tree": TreeConfig("dynamic", rows=16, draft_sources=None),
        "lookup": TreeConfig.lookup(rows=8),
        "merged tree": TreeConfig("dynamic", rows=8, draft_sources=2, drafters=DRAFTERS),
    }


def drafted_against_plain(engine: Engine) -> Iterator[Check]:
    """Every prompt with every tree, greedily and sampled; differences that no near tie excuses."""
    k = engine.manifest.num_predictors
    trees = trees_to_check(engine)
    most = engine.limits.max_rows if engine.limits else MAX_PASS_ROWS
    trees = {name: tree for name, tree in trees.items() if tree.pass_rows(k) <= most}
    prompts = [prompt for group in prompts_by_kind(engine, 2, 16).values() for prompt in group]
    params = [SamplingParams(40), SamplingParams(40, temperature=0.8, top_p=0.95, seed=1)]
    for comparison in compare_trees(engine, prompts, params, trees):
        name = f"drafted = plain, {comparison.name}"
        yield Check(name, not comparison.unexcused, len(comparison.unexcused), 0)
        found = len(comparison.differences)
        allowed = comparison.allowed(engine.manifest.precision.compute)
        near = tuple(
            Tie(comparison.name, difference) for difference in comparison.differences if difference.near_tie
        )
        yield Check(f"near ties, {comparison.name}", found <= allowed, found, allowed, near)
