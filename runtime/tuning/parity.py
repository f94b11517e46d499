"""Drafted against plain decoding, token for token; every difference with the margin that plain
decoding had there.

In: an engine, prompts, params, trees. Out: a `Comparison` for each. The only excuse for a
difference is a near tie: other row counts sum in another order, and rounding can turn a pick whose
margin is below NEAR_TIE.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from firp.runtime.engine import Engine, Prompt
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.request import Request
from firp.runtime.picking.pick import margin
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig


class NearTie(NamedTuple):
    """Limits of what rounding may turn. Another number of rows in a pass sums in another order,
    which moves logits by a few units of the type's precision: about 1e-6 in float32, and in the
    half types by their unit roundoff times the residual stream's magnitude. Rows of a quantized
    bundle have the same bits alone and among others: nothing is excused there.
    """

    logit_gap: float  # greedy: the two best logits are this close
    probability: float  # sampled: the draw is this close to another token's interval
    per_token: float  # how often it may happen


NEAR_TIE = {
    "float32": NearTie(1e-4, 1e-4, 1e-4),
    "float16": NearTie(5e-2, 1e-2, 2e-2),
    "bfloat16": NearTie(4e-1, 8e-2, 1e-1),
    "int8": NearTie(0.0, 0.0, 0.0),
    "int4": NearTie(0.0, 0.0, 0.0),
}


class PlainRun(NamedTuple):
    """Tokens of a plain run, with the margin of each."""

    tokens: list[int]
    margins: list[float]  # of each token's pick


class Difference(NamedTuple):
    """The first token at which a run leaves its plain run."""

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

    def allowed(self, dtype: str) -> int:
        """Near ties that this many tokens may hold."""
        return math.ceil(self.tokens * NEAR_TIE[dtype].per_token)

    @property
    def unexcused(self) -> list[Difference]:
        """Differences that no near tie excuses."""
        return [difference for difference in self.differences if not difference.near_tie]

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted for each decoding step; 1 before the first."""
        return self.decoded_tokens / self.steps if self.steps else 1.0


class MarginPicker(Picker):
    """Picks as ever, and keeps how near each pick was to another."""

    def __init__(self, request: Request):
        super().__init__(request)
        self.needs_logits = True
        self.margins: list[float] = []

    def choose(self, logits: np.ndarray, position: int) -> int:
        self.margins.append(margin(logits, position, self.params))
        return super().choose(logits, position)


def plain_run(engine: Engine, prompt: Prompt, params: SamplingParams) -> PlainRun:
    """Decode one prompt plainly."""
    request = engine.request(prompt, params)
    picker = MarginPicker(request)
    steps = engine.steps(request, picker=picker)
    tokens = [token for step in steps for token in step.tokens]
    return PlainRun(tokens, picker.margins)


def compare(
    comparison: Comparison,
    engine: Engine,
    index: int,
    prompt: list[int],
    params: SamplingParams,
    tree: TreeConfig,
    plain: PlainRun,
) -> None:
    """Decode one prompt with drafts and add the outcome to `comparison`."""
    steps = list(engine.steps(engine.request(prompt, params), tree))
    drafted = [token for step in steps for token in step.tokens]
    comparison.runs += 1
    comparison.steps += len(steps) - 1
    comparison.decoded_tokens += len(drafted) - 1
    difference = first_difference(index, plain, drafted, params, engine.manifest.arithmetic)
    comparison.tokens += difference.position + 1 if difference else len(drafted)
    comparison.differences += [difference] if difference else []


def first_difference(
    prompt: int, plain: PlainRun, other: list[int], params: SamplingParams, dtype: str
) -> Difference | None:
    """The place where another run of the same prompt leaves the plain run, and whether at a near
    tie; None when it never does.
    """
    if other == plain.tokens:
        return None
    at = next((i for i, (a, b) in enumerate(zip(other, plain.tokens, strict=False)) if a != b), None)
    if at is None:  # one run ended early: no pick differed, so no tie excuses it
        return Difference(prompt, min(len(other), len(plain.tokens)), math.inf, False)
    limit = NEAR_TIE[dtype].logit_gap if params.temperature == 0 else NEAR_TIE[dtype].probability
    return Difference(prompt, at, plain.margins[at], plain.margins[at] < limit)


def compare_trees(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams], trees: dict[str, TreeConfig]
) -> list[Comparison]:
    """Compare every prompt with every params and every tree; one plain run serves all trees. One
    Comparison a tree.
    """
    comparisons = {name: Comparison(name) for name in trees}
    for index, prompt in enumerate(prompts):
        for sampling in params:
            plain = plain_run(engine, prompt, sampling)
            for name, tree in trees.items():
                compare(comparisons[name], engine, index, prompt, sampling, tree, plain)
    return list(comparisons.values())
