"""Drafts, alone and under load: which requests draft in the next step, and how much.

In: the jobs that decode together, and how long their steps take. Out: a plan for each. A row costs
the more the more sequences share a pass, so drafts that pay alone may lose in a batch. Two things
decide: the measured table of `firp tune` says how many rows the drafts' probabilities are worth, and
a guard for nearly as many sequences compares drafted with plain steps. No choice changes a token.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.drafters.guard import Guard
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.scheduling.job import Job
from firp.runtime.trees.tree import draft_sources, merge_trees

SMOOTHING = 0.2  # weight of the last step in an average
OUTLIER = 1.2  # averages that a step counts for at most: in some of them, a cache is laid out anew
TRUST = (0.3, 1.5)  # accepted over promised drafts of a request, as far as it is believed
MARGIN = 1.1  # what drafts must win by the table, which knows others' batches, not this one
CAUTION = 3.0  # of guards of batches, where rows are dear: there is less to win than alone
MOST_REST = 16  # steps without drafts, where those that were made lately were worth no row ...
WASTE = 0.01  # ... and as many more as keep making them in vain below this share of the time
STEP = 64  # cached tokens that the table is asked for alike: a step asks for dozens of passes


class Policy:
    """Plans of steps. latency: of this device; None where it was not measured: then whole trees are
    drafted as long as the guard lets them.
    """

    def __init__(self, latency: LatencyTable | None):
        self._latency = latency
        self._pass_ms = functools.lru_cache(4096)(self._table_ms)
        self._judges: dict[int, _Judge] = {}  # of 2, 3 to 4, 5 to 8 ... sequences
        self._plain_ms: dict[int, float] = {}  # of a step, an average, by number of sequences
        self._drafted_ms: dict[int, float] = {}
        self._made = False  # whether drafts were made for this step of several sequences

    def plain_ms(self, batch: int) -> float:
        """Milliseconds of a plain step of so many sequences, as far as known; 0: not known."""
        return self._plain_ms.get(batch) or self._drafted_ms.get(batch, 0.0)

    def plans(self, jobs: Sequence[Job], hurried: bool = False) -> list[PassPlan]:
        """What each of the jobs runs next. hurried: a prompt waits for the rest of the step, whose pieces
        are worth more than drafts: the longer a pass of them, the less of it each token takes.
        """
        self._made = False
        if not any(job.drafts for job in jobs):
            return [job.decoding.plain() for job in jobs]
        guard = self._guard(jobs)
        if hurried or (guard and not (guard.drafts and self._comparable(jobs))):
            return _plain(jobs)
        if guard is None or self._latency is None:
            return [_proposal(job, len(jobs)) for job in jobs]
        if len(jobs) == 1:
            plan = _proposal(jobs[0], 1)
            return [_cut(plan, self._worth_alone(jobs[0], plan))]
        judge = self._judge(jobs)
        if judge.rests():
            return _plain(jobs)
        self._made = True
        plans = [_proposal(job, len(jobs)) for job in jobs]
        rows = self._worth(jobs, plans, judge)
        if rows == 1:
            return _plain(jobs)
        return [_cut(plan, rows) if job.guard else plan for job, plan in zip(jobs, plans, strict=True)]

    def _guard(self, jobs: Sequence[Job]) -> Guard | None:
        """Who judges this step: alone, a request's own guard; None where nobody does."""
        if len(jobs) == 1:
            return jobs[0].guard
        if not all(job.guard for job in jobs if job.drafts):
            return None
        return self._judge(jobs).guard

    def _judge(self, jobs: Sequence[Job]) -> "_Judge":
        return self._judges.setdefault((len(jobs) - 1).bit_length(), _Judge())

    def _comparable(self, jobs: Sequence[Job]) -> bool:
        """Whether a drafted step can be judged: the first one of so many sequences is plain."""
        return len(jobs) == 1 or len(jobs) in self._plain_ms

    def _worth(self, jobs: Sequence[Job], plans: Sequence[PassPlan], judge: "_Judge") -> int:
        """Rows of each sequence that give the most tokens a millisecond, making them included; 1: plain. A
        pass is as wide as its longest tree, so the likeliest nodes of all trees are compared row by row of
        all of them: what fits beside another's node costs nothing. No step may lose more than the guard
        has left, if no draft is accepted: in a batch, one wide pass takes as long as several plain ones.
        """
        batch, cached = len(jobs), _cached(jobs)
        plain_ms = self._pass_ms(batch, 1, 0, cached)
        best, best_rate = 1, MARGIN * batch / plain_ms
        for rows, tokens, pass_ms in itertools.islice(self._widths(jobs, plans, cached), 1, None):
            ms = judge.making_ms + pass_ms
            if ms > (1 + judge.guard.left) * plain_ms:
                break
            if tokens / ms > best_rate:
                best, best_rate = rows, tokens / ms
        return best

    def _worth_alone(self, job: Job, plan: PassPlan) -> int:
        """Rows of the only sequence that give the most tokens a millisecond. Its sources draft in any case:
        whether drafts pay at all is the guard's to say.
        """
        outside = self._latency.drafted_outside_ms
        widths = self._widths([job], [plan], _cached([job]))
        return max(widths, key=lambda width: width.tokens / (width.ms + outside)).rows

    def _widths(self, jobs: Sequence[Job], plans: Sequence[PassPlan], cached: int) -> Iterator["_Width"]:
        """What passes promise, from one row of each sequence to those of the largest tree; the likeliest
        drafts come first.
        """
        likely = [  # tokens that each row of a sequence brings; the root is certain
            [1.0, *(min(job.trust * p, 1.0) for p in sorted(plan.tree.probabilities[1:], reverse=True))]
            for job, plan in zip(jobs, plans, strict=True)
        ]
        tokens = 0.0
        for rows in range(1, 1 + max(map(len, likely))):
            tokens += sum(values[rows - 1] for values in likely if len(values) >= rows)
            pseudo = max(min(rows, len(plan.sources)) * plan.offsets for plan in plans)
            yield _Width(rows, tokens, self._pass_ms(len(jobs), rows, pseudo, cached))

    def _table_ms(self, batch: int, rows: int, pseudo_rows: int, cached: int) -> float:
        table = self._latency
        drafting = table.predictors_ms if pseudo_rows else 0.0
        lower = table.lower(rows, cached, batch)
        return lower + table.upper(rows + pseudo_rows, cached, batch) + drafting

    def observe(
        self,
        jobs: Sequence[Job],
        plans: Sequence[PassPlan],
        tokens: Sequence[int],
        drafting_ms: float,
        pass_ms: float,
        hurried: bool = False,
    ) -> None:
        """Take note of a step: what each job emitted, and milliseconds of making the plans and of the
        rest. A hurried one says nothing about drafts.
        """
        plain = all(len(plan.tree.tokens) == 1 and not plan.sources for plan in plans)
        known = self._plain_ms if plain else self._drafted_ms
        batch = len(jobs)
        before = known.get(batch)
        usual = pass_ms if before is None else min(pass_ms, OUTLIER * before)
        known[batch] = usual if before is None else before + SMOOTHING * (usual - before)
        for job, plan, count in zip(jobs, plans, tokens, strict=True):
            promised = sum(plan.tree.probabilities[1:])
            if count and promised:
                found = min(max((count - 1) / promised, 0.0), 2.0)
                job.trust = min(max(job.trust + SMOOTHING * (found - job.trust), TRUST[0]), TRUST[1])
        guard = self._guard(jobs)
        if hurried or guard is None or not any(job.drafts for job in jobs):
            return
        unit = 1.0 if batch == 1 else self._plain_ms[batch]
        if self._made:
            self._judge(jobs).made(plain, drafting_ms, self._plain_ms[batch])
        if plain:
            guard.plain_step(pass_ms / unit, drafting_ms / unit)
        else:
            guard.drafted_step(sum(tokens) / batch, (drafting_ms + pass_ms) / unit)


class _Judge:
    """Whether batches of nearly as many sequences draft. guard: of their steps, in plain ones."""

    def __init__(self):
        self.guard = Guard(CAUTION)
        self.making_ms = 0.0  # of the drafts of a step, an average; 0: not known yet
        self._resting = 0  # steps for which no drafts are made, for making them takes time too
        self._next_rest = 1

    def rests(self) -> bool:
        """Whether this step has no drafts, whatever they would be."""
        self._resting -= 1
        return self._resting >= 0

    def made(self, in_vain: bool, ms: float, plain_ms: float) -> None:
        """Take note of drafts that took so long to make. in_vain: they were worth no row."""
        weight = SMOOTHING if self.making_ms else 1.0
        self.making_ms += weight * (ms - self.making_ms)
        self._resting = max(self._next_rest, round(self.making_ms / (WASTE * plain_ms))) if in_vain else 0
        self._next_rest = min(2 * self._next_rest, MOST_REST) if in_vain else 1


class _Width(NamedTuple):
    """A pass of so many rows of each sequence: expected tokens of all, and milliseconds."""

    rows: int
    tokens: float
    ms: float


def _cached(jobs: Sequence[Job]) -> int:
    """Tokens that a sequence has cached, on average and about."""
    return round(sum(job.decoding.session.length for job in jobs) / len(jobs) / STEP) * STEP


def _plain(jobs: Sequence[Job]) -> list[PassPlan]:
    """A step without drafts, but of jobs whose tree was given."""
    return [job.decoding.plain() if job.guard else _proposal(job, len(jobs)) for job in jobs]


def _proposal(job: Job, batch: int) -> PassPlan:
    """Its drafts. A draft pass is one for each sequence, which never pays beside others that share the
    pass that verifies: there it is run only for a tree that was given.
    """
    return job.decoding.propose(draft_pass=batch == 1 or job.guard is None)


def fitting(plans: list[PassPlan], rows: int, num_predictors: int) -> list[PassPlan]:
    """The plans, cut where a pass of them would have more than `rows` rows a sequence: it is as long as
    the longest tree, and drafts from as many rows as the tree with most sources.
    """
    rows -= num_predictors * max(len(plan.sources) for plan in plans)
    if max(len(plan.tree.tokens) for plan in plans) <= rows:
        return plans
    return [_cut(plan, rows) for plan in plans]


def _cut(plan: PassPlan, rows: int) -> PassPlan:
    """The likeliest rows of a plan."""
    if len(plan.tree.tokens) <= rows:
        return plan
    tree = merge_trees([plan.tree], rows)
    return plan._replace(tree=tree, sources=tuple(draft_sources(tree, len(plan.sources))))
