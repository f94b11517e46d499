"""Drafted against plain decoding, token for token; every difference with the margin that plain decoding had there.

In: an engine, prompts, params, trees. Out: a `Comparison` for each. The only excuse for a difference is a near tie: other row
counts sum in another order, and rounding can turn a pick whose margin is below NEAR_TIE.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from firp.runtime import sampling
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.tree import TreeConfig

# Largest margin (logit gap, or distance in probability) that rounding is allowed to turn. float32: two orders above the largest
# logit difference seen between row counts (about 1e-6); float16 and bfloat16 likewise, from their 2^-11 and 2^-8 precision.
NEAR_TIE = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 4e-1}
MAX_NEAR_TIES_PER_TOKEN = 1e-4  # float32: at most one in 10,000 tokens


class PlainRun(NamedTuple):
    tokens: list[int]
    margins: list[float]  # of each token's pick


class Difference(NamedTuple):
    prompt: int  # index of the prompt
    position: int  # index of the first token that differs, in the generated tokens
    margin: float  # of the plain run's own pick there
    near_tie: bool


@dataclass
class Comparison:
    """Drafted runs of one tree and one kind of sampling against their plain runs."""

    name: str
    tokens: int = 0  # compared, up to and including the first difference of each run
    runs: int = 0
    steps: int = 0
    decoded_tokens: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def unexcused(self) -> list[Difference]:
        return [difference for difference in self.differences if not difference.near_tie]

    @property
    def tokens_per_step(self) -> float:
        return self.decoded_tokens / self.steps if self.steps else 1.0


def plain_run(engine: Engine, prompt: list[int], params: SamplingParams) -> PlainRun:
    margins = []

    def pick(logits, position, params):
        margins.append(sampling.margin(logits, position, params))
        return sampling.pick(logits, position, params)

    tokens = [token for step in engine.steps(prompt, params, pick=pick) for token in step.tokens]
    return PlainRun(tokens, margins)


def compare(
    comparison: Comparison, engine: Engine, index: int, prompt: list[int], params: SamplingParams, tree: TreeConfig, plain: PlainRun
) -> None:
    """Decode one prompt with drafts and add the outcome to `comparison`."""
    steps = list(engine.steps(prompt, params, tree))
    drafted = [token for step in steps for token in step.tokens]
    comparison.runs += 1
    comparison.steps += len(steps) - 1
    comparison.decoded_tokens += len(drafted) - 1
    if drafted == plain.tokens:
        comparison.tokens += len(drafted)
        return
    pairs = zip(drafted, plain.tokens, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(drafted), len(plain.tokens)))
    margin = plain.margins[at] if at < len(plain.margins) else float("inf")
    comparison.tokens += at + 1
    comparison.differences.append(Difference(index, at, margin, margin < NEAR_TIE[engine.manifest.dtype]))


def compare_trees(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams], trees: dict[str, TreeConfig]
) -> list[Comparison]:
    """Every prompt with every params and every tree; one plain run serves all trees. One Comparison a tree."""
    comparisons = {name: Comparison(name) for name in trees}
    for index, prompt in enumerate(prompts):
        for each in params:
            plain = plain_run(engine, prompt, each)
            for name, tree in trees.items():
                compare(comparisons[name], engine, index, prompt, each, tree, plain)
    return list(comparisons.values())
