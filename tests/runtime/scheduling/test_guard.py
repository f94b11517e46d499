"""The guard: never much slower than plain decoding, never much slower than drafts that pay, by a
clock that the tests turn.
"""

import itertools
import random

import numpy as np
import pytest

from firp.runtime.drafters.guard import Guard
from firp.runtime.drafters.interface import Proposal
from firp.runtime.passes.pass_plan import Pass, PassPlan
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.policy import Policy
from firp.runtime.trees.tree import chain, root_only

PASS = Pass(None, np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))
COSTS = (1.05, 1.3, 1.7, 2.5, 4.0)  # of a drafted step, in plain steps
TOKENS = 2000


class Drafts:
    """Chains of four drafts; `fused`: none after a step without sources, as FIRP has it. `costs`:
    seconds of its proposals.
    """

    prompt_offsets = 0

    def __init__(self, fused=False, has_drafts=lambda: True):
        self.fused = fused
        self.has_drafts = has_drafts
        self.known = True  # whether the last pass left guesses
        self.proposed = 0
        self.noted = 0

    def propose(self, sequence, session, max_depth):
        self.proposed += 1
        empty = not self.has_drafts() or (self.fused and not self.known)
        tree = root_only(sequence.root) if empty else chain([sequence.root, 1, 2, 3, 4])
        return Proposal(tree, (0,) if self.fused else (), 3 if self.fused else 0)

    def observe(self, accepted, result):
        self.noted += 1


class Job:
    """A guarded request that decodes alone."""

    drafts = True
    trust = 1.0

    def __init__(self, drafts, sequence):
        self.guard = Guard()
        self.decoding = self
        self._drafts, self._sequence = drafts, sequence

    def propose(self, draft_pass=True):
        return PassPlan(*self._drafts.propose(self._sequence, None, 8))

    def plain(self):
        return PassPlan(root_only(self._sequence.root))


class World:
    """Steps of a guarded request at these costs. plain_ms and drafted_ms: functions of the tokens so
    far; accept: how many drafts of a step are accepted.
    """

    def __init__(self, drafts, accept, drafted_ms, plain_ms=lambda tokens: 10.0):
        self.now = 0.0
        self.drafts = drafts
        self.accept = accept
        self.costs = drafted_ms, plain_ms
        self.sequence = Sequence(Request((5,), SamplingParams(10**6), frozenset(), 10**6), 10**6)
        self.job, self.policy = Job(drafts, self.sequence), Policy(None)
        self.spent = 0.0  # seconds of steps
        self.kinds = []  # of steps: rows and sources
        self.emitted = []  # by steps that verified drafts
        drafts.observe([0], PASS)  # the prompt's

    @property
    def tokens(self):
        return len(self.sequence.tokens) - 1

    def step(self):
        began = self.now
        (proposal,) = self.policy.plans([self.job])
        rows = len(proposal.tree.tokens)
        drafted_ms, plain_ms = (cost(self.tokens) for cost in self.costs)
        if rows > 1:
            self.now += drafted_ms / 1e3
        else:  # one row with pseudo rows costs half of what drafts cost
            self.now += ((drafted_ms + plain_ms) / 2 if proposal.sources else plain_ms) / 1e3
        accepted = list(range(1 + (self.accept() if rows > 1 else 0)))
        self.drafts.known = bool(proposal.sources)
        self.drafts.observe(accepted, PASS)
        self.policy.observe([self.job], [proposal], [len(accepted)], 0.0, (self.now - began) * 1e3)
        self.spent += self.now - began
        self.sequence.extend([6] * len(accepted))
        self.kinds.append((rows, bool(proposal.sources)))
        self.emitted += [len(accepted)] if rows > 1 else []
        self.now += 5.0  # the consumer's own time

    def run(self, tokens):
        while self.tokens < tokens:
            self.step()
        return self

    @property
    def rate(self):
        return self.tokens / self.spent


def geometric(seed, probability, depth=4):
    rng = random.Random(seed)
    return lambda: next((n for n in range(depth) if rng.random() >= probability), depth)


def changing(seed):
    """Drafts that are good for a while and bad for a while."""
    rng = random.Random(seed)
    left, accept = 0, None

    def accepted():
        nonlocal left, accept
        if left == 0:
            left = rng.choice((3, 10, 30, 100, 300))
            accept = geometric(rng.random(), rng.choice((0.0, 0.1, 0.3, 0.5, 0.7, 0.9)))
        left -= 1
        return accept()

    return accepted


@pytest.mark.parametrize("fused", [False, True])
def test_drafts_never_cost_much(fused):
    for cost, seed in itertools.product(COSTS, range(12)):
        world = World(Drafts(fused), changing(seed), lambda tokens, cost=cost: 10 * cost).run(TOKENS)
        assert world.rate >= 0.98 * 100, (cost, seed)


@pytest.mark.parametrize("cost", [*COSTS, 8.0])
def test_even_drafts_that_win_until_they_are_trusted_never_cost_much(cost):
    world = World(Drafts(), None, lambda tokens: 10 * cost)
    guard = world.job.guard
    world.accept = lambda: 4 if guard._lost else 0
    assert world.run(TOKENS).rate >= 0.98 * 100


def test_hopeless_drafts_are_off_soon_and_tried_ever_less():
    world = World(Drafts(), lambda: 0, lambda tokens: 15.0).run(4000)
    drafted = [index for index, (rows, _) in enumerate(world.kinds) if rows > 1]
    assert len([index for index in drafted if index < 32]) <= 8
    gaps = [after - before for before, after in itertools.pairwise(drafted) if after - before > 8]
    assert gaps[0] < 96
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 1000
    assert world.rate > 0.99 * 100


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("probability", "cost"), [(0.5, 1.3), (0.8, 1.3), (0.6, 1.1), (0.7, 1.7), (0.9, 2.5)]
)
def test_drafts_that_pay_go_on(fused, probability, cost):
    """Beside drafts in every step, which would emit as many tokens as those here did."""
    shares = []
    for seed in range(8):
        world = World(Drafts(fused), geometric(seed, probability), lambda tokens: 10 * cost).run(TOKENS)
        always = np.mean(world.emitted) / cost * 100
        assert always > 1.1 * 100
        shares.append(world.rate / always)
    assert np.mean(shares) > 0.97


def test_drafts_that_begin_to_pay_are_found():
    good = geometric(1, 0.8)
    world = World(Drafts(fused=True), lambda: 0, lambda tokens: 13.0).run(400)
    world.accept = good
    tokens, spent = world.tokens, world.spent
    world.run(TOKENS)
    assert (world.tokens - tokens) / (world.spent - spent) > 1.6 * 100


def test_a_plain_step_has_no_scaffolding():
    world = World(Drafts(fused=True), lambda: 0, lambda tokens: 30.0).run(100)
    off = world.kinds[20:40]
    assert (1, False) in off
    proposed = world.drafts.proposed
    while world.job.guard.drafts:
        world.step()
    proposed = world.drafts.proposed
    world.step()
    assert world.kinds[-1] == (1, False)
    assert world.drafts.proposed == proposed
    assert world.drafts.noted == len(world.kinds) + 1  # each pass and the prompt's


def test_a_slower_machine_is_not_held_against_drafts():
    """Halfway the machine becomes three times slower: plain steps too."""
    slow = lambda ms: lambda tokens: ms * (3 if tokens > 300 else 1)  # noqa: E731
    world = World(Drafts(), geometric(2, 0.7), slow(13.0), slow(10.0)).run(TOKENS)
    drafted = [rows > 1 for rows, _ in world.kinds]
    assert sum(drafted) > 0.95 * len(drafted)


def test_steps_that_find_nothing_to_draft_are_no_evidence():
    """As prompt lookup has it: for a long time nothing repeats, then it does."""
    world = World(Drafts(has_drafts=lambda: False), lambda: 3, lambda tokens: 15.0).run(1000)
    world.drafts.has_drafts = lambda: True
    assert world.rate == pytest.approx(100)
    tokens, spent = world.tokens, world.spent
    world.run(TOKENS)
    assert (world.tokens - tokens) / (world.spent - spent) > 2.5 * 100


def test_a_growing_context_is_followed():
    """Plain steps become three times slower, drafted ones not: what lost pays in the end."""
    world = World(Drafts(), lambda: 1, lambda tokens: 32.0, lambda tokens: 10 + tokens / 100).run(TOKENS)
    drafted = [rows > 1 for rows, _ in world.kinds]
    assert sum(drafted[:200]) < 30
    assert sum(drafted[-200:]) > 180
