"""Drafts, alone and under load: as many rows as their probabilities are worth, and no other token."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from firp.runtime.bundle.calibration import BatchTimes, LatencyTable
from firp.runtime.drafters.guard import Guard
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.scheduling.policy import Policy, fitting
from firp.runtime.trees.tree import chain, grow, root_only

TABLE = LatencyTable(
    device="test",
    prediction_layer=1,
    num_hidden_layers=2,
    contexts=(128,),
    rows=(1, 2, 4, 8, 16, 32, 64),
    lower_ms=((5, 5.2, 5.6, 7, 10, 18, 34),),
    upper_ms=((5, 5.2, 5.6, 7, 10, 18, 34),),
    predictors_ms=0.1,
    plain_outside_ms=0.2,
    drafted_outside_ms=0.5,
)


class Job:
    """A request whose drafts have these probabilities, one after the other."""

    def __init__(self, probabilities, guarded=True):
        self.drafts = bool(probabilities)
        self.guard = Guard() if guarded else None
        self.trust = 1.0
        rows = len(probabilities) + 1
        tree = chain([1] * rows)._replace(probabilities=[1.0, *probabilities])
        self.decoding = SimpleNamespace(
            propose=lambda draft_pass: PassPlan(tree),
            plain=lambda: PassPlan(root_only(1)),
            session=SimpleNamespace(length=100),
        )


def judging(table):
    """A policy that knows what plain steps take."""
    policy = Policy(table)
    for batch in (2, 3, 4, 8):
        jobs = [Job([0.5])] * batch
        policy.observe(jobs, [PassPlan(root_only(1))] * batch, [1] * batch, 0.0, 10.0, hurried=True)
    return policy


def rows(policy, jobs, hurried=False):
    return [len(plan.tree.tokens) for plan in policy.plans(jobs, hurried)]


def test_where_nothing_was_measured_whole_trees_are_drafted():
    assert rows(Policy(None), [Job([0.5, 0.01])]) == [3]
    assert rows(judging(None), [Job([0.5]), Job([0.5, 0.2])]) == [2, 3]


def test_alone_rows_must_be_worth_their_time():
    """By the table 1, 2, 3, 4 rows take 10, 10.4, 10.8, 11.2 ms, half a millisecond beside. After 2,048
    tokens every row takes 4 ms.
    """
    long = (9, 13, 21, 37, 69, 133, 261)
    lower, upper = (*TABLE.lower_ms, long), TABLE.upper_ms * 2
    table = replace(TABLE, contexts=(128, 2048), lower_ms=lower, upper_ms=upper)
    assert rows(Policy(table), [Job([0.5, 0.1, 0.1])]) == [4]
    assert rows(Policy(table), [Job([0.5, 0.1, 0.01])]) == [3]
    job = Job([0.5, 0.1, 0.1])
    job.decoding.session.length = 2048
    assert rows(Policy(table), [job]) == [2]
    job.trust = 0.3
    assert rows(Policy(table), [job]) == [1]
    assert rows(Policy(table), [Job([0.5, 0.01], guarded=False)]) == [3]


def test_alone_sources_draft_for_the_next_step_whatever_this_one_has():
    job = Job([0.5, 0.001, 0.001])
    tree = job.decoding.propose(True).tree
    job.decoding.propose = lambda draft_pass: PassPlan(tree, (0, 2), 3)
    (plan,) = Policy(TABLE).plans([job])
    assert (plan.tree.tokens, plan.sources, plan.offsets) == ([1, 1], (0, 1), 3)
    tree.probabilities[1] = 0.001
    (plan,) = Policy(TABLE).plans([job])
    assert (plan.tree.tokens, plan.sources, plan.offsets) == ([1], (0,), 3)


def test_while_a_prompt_waits_all_decode_plainly_but_a_tree_that_was_given():
    jobs = [Job([0.9, 0.9]), Job([0.9], guarded=False)]
    policy = Policy(None)
    assert rows(policy, jobs, hurried=True) == [1, 2]
    for _ in range(50):  # which says nothing about drafts, whatever it takes
        policy.observe(jobs[:1], policy.plans(jobs[:1], True), [1], 0.0, 1e3, hurried=True)
        policy.observe([jobs[0]] * 2, policy.plans([jobs[0]] * 2, True), [1, 1], 0.0, 1e3, hurried=True)
    assert rows(policy, jobs[:1]) == [3]
    assert rows(policy, [jobs[0]] * 2) == [3, 3]
    assert policy.plain_ms(1) == 1e3


def test_in_a_batch_rows_must_be_worth_their_time():
    likely, unlikely = [0.95, 0.9, 0.85], [0.2, 0.05, 0.01]
    assert rows(judging(TABLE), [Job(likely) for _ in range(4)]) == [4] * 4
    assert rows(judging(TABLE), [Job(unlikely) for _ in range(8)]) == [1] * 8
    assert rows(judging(TABLE), [Job(likely)] * 2 + [Job([])] * 2) == [4, 4, 1, 1]


def test_rows_are_worth_what_they_cost_that_many_sequences():
    """As rows of one sequence they would pay."""
    dear = BatchTimes(8, (128,), (1, 2, 4), ((8, 30, 60),), ((8, 30, 60),))
    jobs = [Job([0.95, 0.9]) for _ in range(8)]
    assert rows(judging(TABLE), jobs) == [3] * 8
    assert rows(judging(replace(TABLE, batches=(dear,))), jobs) == [1] * 8
    cheap = replace(dear, lower_ms=((8, 8.1, 30),), upper_ms=((8, 8.1, 30),))
    assert rows(judging(replace(TABLE, batches=(cheap,))), jobs) == [2] * 8


def test_no_step_may_lose_more_than_the_guard_has_left():
    """By the table 1, 2, 3, 4 rows of eight sequences take 14, 20, 28, 36 ms. What drafts have won may be
    lost again.
    """
    jobs, policy = [Job([0.95, 0.9, 0.85]) for _ in range(8)], judging(TABLE)
    assert rows(policy, jobs) == [3] * 8
    for _ in range(5):  # the fourth is plain
        plans = policy.plans(jobs)
        count = len(plans[0].tree.tokens)
        policy.observe(jobs, plans, [count] * 8, 0.0, 10.0 if count == 1 else 20.0)
    assert rows(policy, jobs) == [4] * 8


def test_a_draft_is_certain_at_most_however_good_others_were():
    """Two rows of eight sequences must bring 1.57 times as many tokens: not with four drafts."""
    jobs = [*(Job([0.9]) for _ in range(4)), *(Job([]) for _ in range(4))]
    for job in jobs:
        job.trust = 1.5
    assert rows(judging(TABLE), jobs) == [1] * 8


def test_a_tree_is_cut_to_its_likeliest_nodes():
    """Wherever they stand in it."""
    steep = BatchTimes(2, (128,), (1, 2, 3, 16), ((5, 5.1, 50, 90),), ((5, 5, 5, 5.5),))
    tree = root_only(1)
    for parent, token, probability in ((0, 5, 0.3), (1, 6, 0.2), (0, 7, 0.6)):
        grow(tree, parent, token, probability)
    jobs = [Job([]), Job([])]
    for job in jobs:
        job.drafts = True
        job.decoding.propose = lambda draft_pass: PassPlan(tree, (0, 1), 3)
    for plan in judging(replace(TABLE, batches=(steep,))).plans(jobs):
        assert plan.tree.tokens == [1, 7]
        assert (plan.sources, plan.offsets) == ((0, 1), 3)


def test_the_first_step_of_so_many_sequences_is_plain_and_drafts_are_judged_with_nearly_as_many():
    policy, jobs = Policy(None), [Job([0.5]) for _ in range(8)]
    assert rows(policy, jobs) == [1] * 8
    for batch, ms in ((5, 50.0), (8, 80.0)):
        policy.observe(jobs[:batch], policy.plans(jobs[:batch]), [1] * batch, 0.0, ms)
    lost = 0
    while rows(policy, jobs) == [2] * 8 and lost < 20:
        policy.observe(jobs, policy.plans(jobs), [1] * 8, 0.0, 160.0)
        lost += 1
    assert lost < 6
    assert rows(policy, jobs[:5]) == [1] * 5  # it lost with eight, and costs five nearly as much
    assert rows(policy, jobs[:2]) == [1] * 2
    policy.observe(jobs[:2], policy.plans(jobs[:2]), [1] * 2, 0.0, 20.0)
    assert rows(policy, jobs[:2]) == [2] * 2


def test_drafts_that_were_worth_little_lately_are_trusted_less():
    jobs = [Job([0.95, 0.9]) for _ in range(8)]
    policy = judging(TABLE)
    assert rows(policy, jobs) == [3] * 8
    for job in jobs:
        job.trust = 0.3
    assert rows(policy, jobs) == [1] * 8


def test_drafts_that_are_worth_nothing_are_made_ever_more_seldom():
    """Making them takes time too; when they are worth something again, they are found soon."""
    jobs = [Job([0.2]) for _ in range(8)]
    promising = [Job([0.95, 0.9]) for _ in range(8)]
    policy, made = judging(TABLE), []
    worthless = PassPlan(chain([1, 1])._replace(probabilities=[1.0, 0.2]))
    jobs[0].decoding.propose = lambda draft_pass: made.append(1) or worthless
    for _ in range(100):
        plans = policy.plans(jobs)
        policy.observe(jobs, plans, [1] * 8, 0.0, 10.0)
    assert 5 <= len(made) <= 12
    waited = next(step for step in range(100) if rows(policy, promising) == [3] * 8)
    assert waited <= 16
    assert rows(policy, promising) == [3] * 8


@pytest.mark.parametrize("making_ms", [0.1, 1.0, 20.0])
def test_making_drafts_in_vain_takes_about_a_hundredth_of_the_time_at_most(making_ms):
    """A plain step takes 10 ms, and the first drafts of all cost what they cost."""
    jobs, spent, judges = [Job([0.2]) for _ in range(8)], 0.0, judging(TABLE)
    worthless, made = jobs[0].decoding.propose(False), []
    jobs[0].decoding.propose = lambda draft_pass: made.append(making_ms) or worthless
    for _ in range(4000):
        before = len(made)
        plans = judges.plans(jobs)
        drafting_ms = making_ms * (len(made) - before)
        judges.observe(jobs, plans, [1] * 8, drafting_ms, 10.0)
        spent += drafting_ms
    assert 0 < spent <= making_ms + 0.012 * 4000 * 10


def test_drafts_that_are_dear_to_make_are_left_out_from_the_first_on():
    """Half a plain step of 10 ms, and worth no row: they are made once in fifty steps."""
    jobs, policy, made = [Job([0.2]) for _ in range(8)], judging(TABLE), []
    worthless = jobs[0].decoding.propose(False)
    jobs[0].decoding.propose = lambda draft_pass: made.append(1) or worthless
    for _ in range(51):
        before = len(made)
        plans = policy.plans(jobs)
        policy.observe(jobs, plans, [1] * 8, 5.0 * (len(made) - before), 10.0)
    assert len(made) == 1


def test_what_drafts_cost_to_make_is_what_they_must_win():
    """By the table two rows of eight sequences take 20 ms, one 14."""
    jobs, policy = [Job([0.9, 0.3]) for _ in range(8)], judging(TABLE)
    assert rows(policy, jobs) == [2] * 8
    for _ in range(10):
        policy.observe(jobs, policy.plans(jobs), [2] * 8, 0.1, 20.0)
    assert rows(policy, jobs) == [2] * 8
    policy = judging(TABLE)
    policy.observe(jobs, policy.plans(jobs), [2] * 8, 30.0, 20.0)
    assert rows(policy, jobs) == [1] * 8


def test_a_draft_pass_is_run_for_one_sequence_alone_or_for_a_tree_that_was_given():
    asked = []

    def propose(draft_pass):
        asked.append(draft_pass)
        return PassPlan(root_only(1))

    jobs = [Job([0.9]), Job([0.9], guarded=False)]
    for job in jobs:
        job.decoding.propose = propose
    Policy(None).plans(jobs[:1])
    Policy(None).plans(jobs)
    assert asked == [True, False, True]


def test_a_tree_that_was_given_is_drafted_to_the_end():
    jobs = [Job([0.2, 0.05], guarded=False), *(Job([0.2, 0.05]) for _ in range(7))]
    assert rows(judging(TABLE), jobs)[0] == 3


@pytest.mark.parametrize("seed", range(6))
def test_no_batch_is_much_slower_than_plain_whatever_drafts_promise(seed):
    """Without a table the guard alone decides, by a clock that knows nothing of what was promised."""
    rng = random.Random(seed)
    batch = rng.choice([2, 4, 8])
    policy = Policy(rng.choice([None, TABLE]))
    jobs = [Job([0.7, 0.5, 0.3]) for _ in range(batch)]
    acceptance = rng.choice([0.0, 0.1, 0.4, 0.9])
    cost = rng.choice([0.02, 0.1, 0.3])  # of a row more, in plain steps
    spent, tokens = 0.0, 0
    for _ in range(4000):
        plans = policy.plans(jobs)
        emitted = []
        for plan in plans:
            count = 1
            while count < len(plan.tree.tokens) and rng.random() < acceptance:
                count += 1
            emitted.append(count)
        most = max(len(plan.tree.tokens) for plan in plans)
        ms = 10 * (1 + cost * (most - 1) * batch / 4)
        policy.observe(jobs, plans, emitted, 0.0, ms)
        spent += ms
        tokens += sum(emitted)
    assert tokens / spent >= 0.98 * batch / 10


def test_trees_that_do_not_fit_a_pass_together_are_cut():
    """Six rows alone, and two rows with a source of three pseudo rows: nine rows together."""
    long, drafting = PassPlan(chain([5] * 6)), PassPlan(chain([5] * 2), (1,), 3)
    assert fitting([long, drafting], 9, 3) == [long, drafting]
    cut = fitting([long, drafting], 8, 3)
    assert [len(plan.tree.tokens) for plan in cut] == [5, 2]
    assert [plan.sources for plan in cut] == [(), (1,)]
    both = fitting([long, drafting._replace(sources=(0, 1))], 8, 3)
    assert [len(plan.tree.tokens) for plan in both] == [2, 2]
