"""Tokens that must be the same: plain decoding and Hugging Face's `generate`, drafted and plain.

In: an engine, and the `Reference`. Out: `Check`s that count the runs that differ.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from firp.export.verify.report import Check, Tie
from firp.export.verify.rows import Sample
from firp.runtime.engine import Engine
from firp.runtime.loop.text import encode_text
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import root_only
from firp.runtime.trees.tree_config import CHAIN, DRAFTERS, MAX_PASS_ROWS, TreeConfig
from firp.runtime.tuning.parity import (
    NEAR_TIE,
    Difference,
    PlainRun,
    compare_trees,
    first_difference,
    plain_run,
)

_LARGE = 200 << 20  # bytes of weights
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
        kinds["text"] = [encode_text(engine.tokenizer, text)[:most] for text in TEXTS[:count]]
    return kinds


def _is_large(engine: Engine) -> bool:
    """Whether a pass takes a user's time; then fewer tokens are decoded."""
    return engine.manifest.files["model.safetensors"].size > _LARGE


def most_rows(engine: Engine) -> int:
    """Rows of the largest pass that decodes them all."""
    return engine.limits.max_rows if engine.limits else 64


def plain_against_generate(
    name: str, engine: Engine, reference: Any, prompts: list[list[int]], dtype: str
) -> Check:
    """Runs that are not those of Hugging Face's greedy `generate`. One that parts at a near tie of
    the plain run is recorded and excused, as rarely as `NEAR_TIE` allows in `dtype`, that of the
    bundle's values; and one whose row there depends on a near tie of routing.
    """
    longest = 16 if _is_large(engine) else 32
    count = min(longest, engine.model.max_position_embeddings - max(map(len, prompts)))
    greedy = SamplingParams(max_new_tokens=count)
    runs = [plain_run(engine, prompt, greedy) for prompt in prompts]
    ends = engine.bundle.eos_token_ids
    picked = generated_along(reference, prompts, [run.tokens for run in runs], count, ends)
    differences = [
        first_difference(index, run, theirs, greedy, dtype)
        for index, (run, theirs) in enumerate(zip(runs, picked, strict=True))
    ]
    found = [difference for difference in differences if difference]
    near = [Tie("generate", difference) for difference in found if difference.near_tie]
    routed = [
        Tie("generate, routing", difference._replace(near_tie=True))
        for difference in found
        if not difference.near_tie and _depends_on_routing(reference, prompts, runs, difference, dtype)
    ]
    excused = min(len(near), math.ceil(len(prompts) * count * NEAR_TIE[dtype].per_token)) + len(routed)
    return Check(name, len(found) == excused, len(found) - excused, 0, (*near, *routed))


def _depends_on_routing(
    reference: Any, prompts: list[list[int]], runs: list[PlainRun], difference: Difference, dtype: str
) -> bool:
    """Whether the row that a plain run was left at depends on a near tie of routing."""
    from firp.export.verify.routing import near_ties

    prompt, tokens = prompts[difference.prompt], runs[difference.prompt].tokens
    if not reference.checkpoint.config.experts or difference.position >= len(tokens):
        return False
    sample = Sample(prompt + tokens[:-1], root_only(tokens[-1]))
    _, _, ties = near_ties(reference, 1, [sample], dtype)
    return bool(ties.dependent[0].prefill.logits[len(prompt) - 1 + difference.position])


def generated_along(
    reference: Any, prompts: list[list[int]], runs: list[list[int]], count: int, ends: tuple[int, ...]
) -> list[list[int]]:
    """What greedy `generate` writes after each prompt, as far as it goes along with the run. One
    pass finds it: the token that the model takes after the prompt, and after every token of the
    run. Sequences are padded at their ends, which a causal model's rows do not see.
    """
    import torch

    sequences = [prompt + run for prompt, run in zip(prompts, runs, strict=True)]
    longest = max(map(len, sequences))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in sequences])
    picked = reference.run(ids).logits.argmax(-1).tolist()
    generated = []
    for row, prompt, run in zip(picked, prompts, runs, strict=True):
        after = row[len(prompt) - 1 : len(prompt) + len(run)][:count]
        end = next((at + 1 for at, token in enumerate(after) if token in ends), len(after))
        generated.append(after[:end])
    return generated


def trees_to_check(engine: Engine) -> dict[str, TreeConfig]:
    """One tree of every kind that the bundle can draft; without predictors by lookup alone."""
    k = engine.manifest.num_predictors
    quantization = engine.manifest.quantization
    if quantization:
        chains = {"lookup": replace(TreeConfig.lookup(rows=8), kind=CHAIN)}
        if k:
            chains |= {
                "best chain": engine.best_tree,
                "draft pass": TreeConfig.chain(k, 0),
                "all sources": TreeConfig.chain(k),
                "merged chain": TreeConfig(CHAIN, 8, 2, drafters=DRAFTERS),
            }
        return chains if quantization.takes_drafts else {}
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
    each, count = (1, 12) if _is_large(engine) else (2, 40)
    prompts = [prompt for group in prompts_by_kind(engine, each, 16).values() for prompt in group]
    params = [SamplingParams(count), SamplingParams(count, temperature=0.8, top_p=0.95, seed=1)]
    for comparison in compare_trees(engine, prompts, params, trees):
        name = f"drafted = plain, {comparison.name}"
        yield Check(name, not comparison.unexcused, len(comparison.unexcused), 0)
        found = len(comparison.differences)
        allowed = comparison.allowed(engine.manifest.arithmetic)
        near = tuple(
            Tie(comparison.name, difference) for difference in comparison.differences if difference.near_tie
        )
        yield Check(f"near ties, {comparison.name}", found <= allowed, found, allowed, near)
