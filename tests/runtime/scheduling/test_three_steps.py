"""A long prompt never stops others for more than three plain steps, by a clock that counts work: rows,
the slots that they attend over, slots that are moved.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from firp.runtime.backends.host import HostMemory
from firp.runtime.bundle.format import MANIFEST_NAME, FileEntry, read_manifest
from firp.runtime.drafters.plain import PlainDrafter
from firp.runtime.loop.picker import Picker
from firp.runtime.observer import NullObserver
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.request import Request
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle
from firp.runtime.scheduling.job import Job
from firp.runtime.scheduling.lanes import Lanes
from firp.runtime.scheduling.prefixes import Prefixes
from firp.runtime.scheduling.scheduler import Scheduler

CONTEXT = 8192


class Costs(NamedTuple):
    """Milliseconds of what a machine does, and how large a model is."""

    graphs: float  # of a pass
    row: float
    lane_slots: float  # of a thousand slots of a lane that a pass reads
    row_slots: float  # of a thousand slots that a row attends over
    moved_slots: float  # of a thousand slots that are moved
    weights: int  # slots of as many bytes
    given_slots: float = 0.0  # of a thousand slots that the system gives when they are used first


SMOLLM = Costs(28, 5, 4, 1.2, 18, 11_700)
INTEGERS = Costs(9, 1.5, 4, 1.2, 18, 2_900)
LARGE = Costs(400, 20, 7, 1.5, 30, 60_000)


class Counted(HostMemory):
    """Host memory in which moving slots takes time, and using them first. advance: by milliseconds."""

    def __init__(self, advance, slot_values, costs):
        super().__init__()
        self._advance, self._slot_values = advance, slot_values
        self._move_ms, self._give_ms = costs.moved_slots, costs.given_slots
        self._given = 0  # values of the cache

    def touch(self, array):
        super().touch(array)
        self._give(self._given + array.size)

    def _give(self, values):
        new = max(0, values - self._given)
        self._given += new
        self._advance(new / self._slot_values * self._give_ms / 1e3)

    def copy(self, source, target):
        super().copy(source, target)
        self._advance(source.size / self._slot_values * self._move_ms / 1e3)

    def lay_out(self, array, blocks, before, after, used, width):
        super().lay_out(array, blocks, before, after, used, width)
        self._give(blocks * after * width)
        self._advance(blocks * used * width / self._slot_values * self._move_ms / 1e3)


class Stub:
    """A graph that computes nothing, and takes as long as its arrays say."""

    def __init__(self, spec, advance, costs, share):
        self.spec = spec
        self._advance, self._costs, self._share = advance, costs, share

    def runner(self, memory):
        return self

    def run(self, binding):
        if not self._share:
            return
        lanes, _, rows, slots = binding.inputs["attention_bias"].shape
        costs = self._costs
        attended = lanes * slots / 1e3 * (costs.lane_slots + rows * costs.row_slots)
        self._advance(self._share * (costs.graphs + lanes * rows * costs.row + attended))


class LastStep(NullObserver):
    """Keeps the last report."""

    def step(self, report):
        self.report = report


class World:
    """Requests of an engine without a model, step by step."""

    def __init__(self, bundle, costs, max_lanes=8, max_stall=3.0):
        manifest = read_manifest(bundle / MANIFEST_NAME)
        model = replace(manifest.model, max_position_embeddings=CONTEXT)
        self.now = 0.0
        self.costs = costs
        self.last = LastStep()
        slot_values = 2 * model.num_hidden_layers * model.attention.key_value_size
        file = FileEntry(int(costs.weights * slot_values * 4), "")
        manifest = replace(manifest, model=model, files={"model.safetensors": file})
        shares = {"lower": 0.5, "upper": 0.5, "predictors": 0.0}
        graphs = {
            name: Stub(spec, self.advance, costs, shares[name]) for name, spec in manifest.graphs.items()
        }

        def make(size):
            return Batch(manifest, graphs, Counted(self.advance, slot_values, costs), size)

        lanes = Lanes(manifest, make, max_lanes, None, None, Prefixes(0))
        self.scheduler = Scheduler(lanes, None, self.last, max_stall, lambda: self.now)
        self._number = 0

    def advance(self, ms):
        self.now += ms / 1e3

    def submit(self, prompt_tokens, new_tokens=3000):
        self._number += 1
        prompt = [self._number] * prompt_tokens
        params = SamplingParams(new_tokens, ignore_eos=True)
        request = Request.checked(prompt, params, frozenset(), 192, CONTEXT)
        handle = Handle(str(self._number))
        needs, picker = request.needs(None, 3), Picker(request)
        job = Job(request, needs, PlainDrafter(), picker, True, handle, None, None, None)
        self.scheduler.waiting.append(job)
        return job

    def step(self):
        """Milliseconds of a step."""
        before = self.now
        self.scheduler.step()
        return (self.now - before) * 1e3

    @property
    def plain(self):
        """Milliseconds of a step without anything but decoding, as texts are now."""
        costs, total = self.costs, 0.0
        for group in self.scheduler.lanes.groups:
            if lanes := len(group.decoding):
                attended = lanes * group.decoding[0].slots / 1e3 * (costs.lane_slots + costs.row_slots)
                total += costs.graphs + lanes * costs.row + attended
        return total

    def decode(self, jobs, steps=12):
        """Let these decode, and nothing else."""
        while not all(job.tokens for job in jobs):
            self.step()
        for _ in range(steps):
            self.step()

    def compute(self, job, others):
        """How long each step with a piece takes, in plain ones, until a prompt is computed; the others get
        a token in each step. In some there is none: the others' own texts are laid out anew, or memory
        is taken.
        """
        return [steps for steps, tokens in self.compute_all(job, others) if tokens]

    def compute_all(self, job, others):
        """The same of all steps, with how many tokens of the prompt each computed."""
        steps = []
        while not job.tokens:
            tokens, plain = [other.tokens for other in others], self.plain
            ms = self.step()
            assert [other.tokens for other in others] == [count + 1 for count in tokens]
            steps.append((ms / plain, self.last.report.prompt_tokens))
        return steps


@pytest.fixture
def world(family_bundle):
    return lambda costs, **options: World(family_bundle("llama")[1], costs, **options)


@pytest.mark.parametrize("costs", [SMOLLM, INTEGERS, LARGE])
@pytest.mark.parametrize("tokens", [700, 4000])
def test_others_wait_no_longer_than_three_plain_steps(world, costs, tokens):
    here = world(costs)
    others = [here.submit(20 + 7 * place) for place in range(7)]
    here.decode(others)
    steps = here.compute(here.submit(tokens), others)
    assert max(steps) <= 3
    assert np.median(steps) >= 2.3  # the prompt gets what the others can spare


def test_who_may_wait_longer_sees_a_prompt_computed_in_fewer_and_longer_steps(world):
    counts = []
    for max_stall in (3.0, 8.0):
        here = world(SMOLLM, max_stall=max_stall)
        others = [here.submit(20 + 7 * place) for place in range(7)]
        here.decode(others)
        steps = here.compute(here.submit(2000), others)
        assert max_stall / 2 < max(steps) <= max_stall
        counts.append(len(steps))
    assert counts[1] < counts[0] / 2


def test_a_second_long_prompt_waits_beside_the_first_one_that_decodes(world):
    here = world(SMOLLM)
    others = [here.submit(20 + 7 * place) for place in range(6)]
    here.decode(others)
    first = here.submit(4000)
    here.compute(first, others)
    here.decode([*others, first])
    steps = here.compute(here.submit(3000), [*others, first])
    assert max(steps) <= 3


def test_requests_that_come_while_a_long_prompt_is_computed_do_not_attend_over_its_slots(world):
    here = world(SMOLLM)
    long = here.submit(6000)
    for _ in range(10):
        here.step()
    assert not long.tokens
    others = [here.submit(20 + 7 * place) for place in range(7)]
    while not all(job.tokens for job in others):
        here.step()
    assert max(here.compute(long, others)) <= 3
    assert sorted(group.longest for group in here.scheduler.lanes.groups)[0] < 1000


def test_texts_of_like_lengths_share_a_pass(world):
    here = world(SMOLLM)
    jobs = [here.submit(tokens) for tokens in (900, 1000, 1100, 700)]
    here.decode(jobs, steps=2)
    assert sorted(len(group.decoding) for group in here.scheduler.lanes.groups) == [0, 4]


@pytest.mark.parametrize("costs", [SMOLLM, INTEGERS])
def test_memory_that_nobody_used_before_is_taken_in_parts(world, costs):
    """That of a long prompt, and that of the texts of those who wait."""
    here = world(costs._replace(given_slots=100))
    others = [here.submit(20 + 7 * place) for place in range(7)]
    here.decode(others)
    steps = here.compute_all(here.submit(4000), others)
    assert max(ms for ms, tokens in steps if tokens) <= 3
    # beyond it no memory is taken: the others' own texts, long by now, are laid out anew
    assert max(ms for ms, _ in steps) <= 3.3
