"""Drafts under load: which requests draft in the next step, and how much.

In: the jobs that decode together, and how long their steps take. Out: a plan for each. A row costs
the more the more sequences share a pass, so drafts that pay alone may lose in a batch. Two things
decide: the measured table of `firp tune` says how many rows the drafts' probabilities are worth, and
a guard for each number of sequences compares drafted with plain steps. No choice changes a token.
"""

from collections.abc import Sequence

from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.drafters.guard import Guard
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.scheduling.job import Job

SMOOTHING = 0.2  # weight of the last step in an average
OUTLIER = 1.2  # averages that a step counts for at most: in some of them, a cache is laid out anew
TRUST = (0.3, 1.5)  # accepted over promised drafts of a request, as far as it is believed
MARGIN = 1.03  # what drafts must win by the table
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # rows of a sequence that are compared


class Policy:
    """Plans of steps. latency: of this device; None where it was not measured: then whole trees are
    drafted as long as the guard lets them.
    """

    def __init__(self, latency: LatencyTable | None):
        self._latency = latency
        self._guards: dict[int, Guard] = {}  # by number of sequences, from two on
        self._plain_ms: dict[int, float] = {}  # of a step, an average, by number of sequences
        self._drafted_ms: dict[int, float] = {}

    def plain_ms(self, batch: int) -> float:
        """Milliseconds of a plain step of so many sequences, as far as known; 0: not known."""
        return self._plain_ms.get(batch) or self._drafted_ms.get(batch, 0.0)

    def plans(self, jobs: Sequence[Job]) -> list[PassPlan]:
        """What each of the jobs runs next."""
        if not any(job.drafts for job in jobs):
            return [job.decoding.plain() for job in jobs]
        guard = self._guard(jobs)
        if guard and not guard.drafts:
            return [job.decoding.plain() if job.guard else job.decoding.propose() for job in jobs]
        plans = [job.decoding.propose() for job in jobs]
        if guard is None or len(jobs) == 1 or self._latency is None:
            return plans
        rows = self._worth(jobs, plans)
        return [_cut(plan, rows) if job.guard else plan for job, plan in zip(jobs, plans, strict=True)]

    def _guard(self, jobs: Sequence[Job]) -> Guard | None:
        """Who judges this step: alone, a request's own guard; None where nobody does."""
        if len(jobs) == 1:
            return jobs[0].guard
        if not any(job.guard and job.drafts for job in jobs):
            return None
        return self._guards.setdefault(len(jobs), Guard())

    def _worth(self, jobs: Sequence[Job], plans: Sequence[PassPlan]) -> int:
        """Rows of each sequence that give the most tokens a millisecond; 1: plain."""
        batch = len(jobs)
        cached = sum(job.decoding.session.length for job in jobs) / batch
        sources = max(len(plan.sources) * plan.offsets for plan in plans)
        best, best_rate = 1, MARGIN * batch / self._pass_ms(batch, 1, 0, cached)
        most = max(len(plan.tree.tokens) for plan in plans)
        for rows in (*(size for size in SIZES if size < most), most):
            gained = sum(
                job.trust * sum(plan.tree.probabilities[1:rows])
                for job, plan in zip(jobs, plans, strict=True)
            )
            rate = (batch + gained) / self._pass_ms(batch, rows, sources, cached)
            if rate > best_rate:
                best, best_rate = rows, rate
        return best

    def _pass_ms(self, batch: int, rows: int, pseudo_rows: int, cached: float) -> float:
        table = self._latency
        drafting = table.predictors_ms if pseudo_rows else 0.0
        lower = table.lower(batch * rows, cached)
        return lower + table.upper(batch * (rows + pseudo_rows), cached) + drafting

    def observe(
        self,
        jobs: Sequence[Job],
        plans: Sequence[PassPlan],
        tokens: Sequence[int],
        drafting_ms: float,
        pass_ms: float,
    ) -> None:
        """Take note of a step: what each job emitted, and milliseconds of making the plans and of the
        rest.
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
        if guard is None or not any(job.drafts for job in jobs):
            return
        if plain:
            guard.plain_step(pass_ms, drafting_ms)
        else:
            guard.drafted_step(sum(tokens) / batch, drafting_ms + pass_ms)


def fitting(plans: list[PassPlan], rows: int, num_predictors: int) -> list[PassPlan]:
    """The plans, cut where a pass of them would have more than `rows` rows a sequence: it is as long as
    the longest tree, and drafts from as many rows as the tree with most sources.
    """
    rows -= num_predictors * max(len(plan.sources) for plan in plans)
    if max(len(plan.tree.tokens) for plan in plans) <= rows:
        return plans
    return [_cut(plan, rows) for plan in plans]


def _cut(plan: PassPlan, rows: int) -> PassPlan:
    """The first rows of a plan; 1: without drafts."""
    if rows == 1:
        return plan._replace(tree=plan.tree.first(1, 0.0), sources=(), offsets=0)
    sources = tuple(row for row in plan.sources if row < rows)
    return plan._replace(
        tree=plan.tree.first(rows, 0.0), sources=sources, offsets=plan.offsets if sources else 0
    )
