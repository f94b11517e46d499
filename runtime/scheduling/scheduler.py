"""What the engine does next: admit, decode together, compute a piece of a prompt.

In: jobs. Out: their chunks, step by step. One thread owns it. Those that decode come first, a pass for
each batch; the rest of a step goes to one piece of one prompt, of a size with which the whole step
takes no longer than a few plain ones. A step is a transaction: nothing of a request changes before its
pass has returned, and what fails in one request ends that one alone.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.errors import FirpError
from firp.runtime.observer import Observer
from firp.runtime.passes.batch import COPIES
from firp.runtime.passes.pass_plan import PREFILL_ROWS, Pass, PassPlan
from firp.runtime.passes.session import Session, forward_together
from firp.runtime.scheduling.job import Job
from firp.runtime.scheduling.lane_group import LaneGroup
from firp.runtime.scheduling.lanes import Lanes
from firp.runtime.scheduling.pieces import LEAST, Pieces
from firp.runtime.scheduling.policy import Policy, fitting
from firp.runtime.scheduling.statistics import StepCounts

AIM = 0.9  # of the time that a step with a piece of a prompt may take: some room, for times differ
MOVED_SLOTS = 2048  # of a text, when its slots are laid out anew while others wait
SPARE_SLOTS = 64  # for pseudo rows and the first tokens after a prompt


class Scheduler:
    """Requests that wait and requests that run. latency: of this device, None where it was not measured;
    max_stall: plain steps that a step with a piece of a prompt may take; clock: seconds, from any moment
    on.
    """

    def __init__(
        self,
        lanes: Lanes,
        latency: LatencyTable | None,
        observer: Observer,
        max_stall: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.lanes = lanes
        self.waiting: deque[Job] = deque()
        self._policies = {group: Policy(latency) for group in lanes.groups}
        self._observer = observer
        self._max_stall = max_stall
        self._clock = clock
        self._jobs: dict[Session, Job] = {}
        self._prompts: deque[Session] = deque()  # being prefilled, the next one first
        self._pieces = Pieces()
        self._left_out = False  # whether the last step had no time for a piece of a prompt
        self._report = StepCounts()
        self._pass_ms: dict[str, float] = {}  # of the last pass and its drafts, by graph, and copies

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self._jobs

    def step(self) -> None:
        """One step: everybody who decodes gets a token or more, one prompt comes nearer to its end."""
        began = self._clock()
        self._report = StepCounts()
        self._end_those_that_should()
        self.lanes.look_after(began)
        self._admit()
        batch = self.lanes.decoding
        for group in self.lanes.groups:
            if group.decoding:
                self._decode(group)
        if self._prompts:
            self._prefill(self._prompts[0], began)
        ms = (self._clock() - began) * 1e3
        now = self.lanes.active, len(self.waiting), self.lanes.cache_bytes
        if report := self._report.report(batch, ms, *now):
            self._observer.step(report)

    def close(self, reason: str = "cancelled") -> None:
        """End everything that waits or runs."""
        for job in [*self.waiting, *self._jobs.values()]:
            self._end(job, reason)
        self.waiting.clear()

    def fail(self, error: BaseException) -> None:
        """End everything that waits or runs with an error, and give all memory back; for when nothing
        more will run.
        """
        jobs = [job for job in [*self.waiting, *self._jobs.values()] if not job.handle.done]
        self.waiting.clear()
        self._jobs.clear()
        self._prompts.clear()
        self.lanes.drop()
        for job in jobs:
            self._fail(job, error)

    def _end_those_that_should(self) -> None:
        for job in [*self.waiting, *self._jobs.values()]:
            try:
                if reason := job.why_to_end:
                    self._end(job, reason)
            except FirpError as error:
                self._fail(job, error)
        self.waiting = deque(job for job in self.waiting if not job.handle.done)

    def _admit(self) -> None:
        """In the order of submission: a large request is not overtaken for ever by small ones."""
        while self.waiting:
            job = self.waiting[0]
            try:
                session = self.lanes.admit(job.needs, job.request.prompt)
            except FirpError as error:
                self.waiting.popleft()
                # its frames hold the memory that a batch got in vain
                self._fail(job, error.with_traceback(None))
                continue
            if session is None:
                return
            self.waiting.popleft()
            self._jobs[session] = job
            self._prompts.append(session)
            try:
                job.start(session)
            except FirpError as error:
                self._fail(job, error)
                continue
            queue_ms = (self._clock() - job.submitted_at) * 1e3
            job.handle.kv_bytes = self.lanes.bytes_alone(job.needs)
            self._observer.started(job.handle.id, queue_ms, job.decoding.reused_tokens, job.handle.kv_bytes)

    def _decode(self, group: LaneGroup) -> None:
        began = self._clock()
        policy = self._policies[group]
        jobs = [self._jobs[session] for session in group.decoding]
        hurried = bool(self._prompts)
        spent = dict(group.decoding[0].spent_ms)  # drafting may run graphs too
        try:
            plans = policy.plans(jobs, hurried)
            if len(plans) > 1:
                plans = fitting(plans, group.pass_rows(len(plans)), self.lanes.predictors)
            drafted = self._clock()
            results = self._forward(jobs, plans, spent)
        except Exception as error:
            self._fail_all(jobs, error)
            return
        tokens = self._take(jobs, plans, results, began)
        now = self._clock()
        policy.observe(jobs, plans, tokens, (drafted - began) * 1e3, (now - drafted) * 1e3, hurried)

    def _prefill(self, session: Session, step_began: float) -> None:
        """One piece of a prompt; with several of them, they take turns."""
        job = self._jobs[session]
        try:
            most = self._most(session, job, step_began)
            if not most:
                return
            self._prompts.rotate(-1)
            began = self._clock()
            plan = job.decoding.next_piece(min(session.prefill_rows, most))
            results = self._forward([job], [plan], dict(session.spent_ms))
        except Exception as error:
            self._fail_all([job], error)
            return
        count = len(plan.tree.tokens)
        self._report.prompt_tokens += count
        self._take([job], [plan], results, began)
        if self._jobs.get(session) is not job:
            return
        self._pieces.note(count, session.slots, (self._clock() - began) * 1e3)
        self.lanes.keep(session)
        if not job.decoding.prefilling:
            self._prompts.remove(session)
            self.lanes.group_of(session).start_decoding(session)

    def _most(self, session: Session, job: Job, step_began: float) -> int:
        """Tokens of a prompt that may be computed in this step; 0: none, for much else was done in it."""
        if not self.lanes.decoding:
            return PREFILL_ROWS
        plain = [self._policies[group].plain_ms(len(group.decoding)) for group in self.lanes.groups]
        until = step_began + AIM * self._max_stall * sum(plain) / 1e3
        if not _make_room(session, len(job.request.prompt), lambda: self._clock() < until):
            return 0
        most = self._pieces.most(session.slots, (until - self._clock()) * 1e3)
        self._left_out = not most and not self._left_out
        return most or (0 if self._left_out else LEAST)

    def _forward(
        self, jobs: Sequence[Job], plans: Sequence[PassPlan], before: Mapping[str, float]
    ) -> list[Pass]:
        """A pass. before: what their batch had spent before it, and before its drafts."""
        sessions = [job.decoding.session for job in jobs]
        results = forward_together(sessions, plans)
        self._pass_ms = {name: ms - before[name] for name, ms in sessions[0].spent_ms.items()}
        self._report.add_times(self._pass_ms)
        return results

    def _take(
        self, jobs: Sequence[Job], plans: Sequence[PassPlan], results: Sequence[Pass], began: float
    ) -> list[int]:
        """Hand out what a pass decided; return the tokens of each."""
        ms = (self._clock() - began) * 1e3
        graph_ms = {name: spent for name, spent in self._pass_ms.items() if name != COPIES}
        emitted = []
        for job, plan, result in zip(jobs, plans, results, strict=True):
            try:
                before = job.tokens
                chunk = job.take(plan, result, graph_ms, self._pass_ms[COPIES], ms)
            except Exception as error:
                self._fail(job, error)
                emitted.append(0)
                continue
            emitted.append(job.tokens - before)
            if chunk:
                self._tell_tokens(job, emitted[-1])
                self._report.count(plan, emitted[-1], job.accepted)
                job.handle.publish(chunk)
            if job.finished:
                self._end(job, None)
        return emitted

    def _tell_tokens(self, job: Job, count: int) -> None:
        now = self._clock()
        if job.tokens == count:
            self._observer.first_token(job.handle.id, (now - job.submitted_at) * 1e3)
        self._observer.tokens(job.handle.id, count, (now - job.last_tokens_at) * 1e3)
        job.last_tokens_at = now

    def _end(self, job: Job, reason: str | None) -> None:
        """Free what a job holds, then hand out its closing chunk: whoever has it finds nothing left."""
        try:
            chunk = job.close(reason)
        except Exception as error:
            self._fail(job, error)
            return
        self._forget(job)
        self._tell_end(job, chunk.finish_reason)
        job.handle.publish(chunk)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._forget(job)
        self._tell_end(job, "error")
        job.handle.fail(error)

    def _fail_all(self, jobs: Sequence[Job], error: BaseException) -> None:
        for job in jobs:
            self._fail(job, error)

    def _tell_end(self, job: Job, reason: str) -> None:
        ms = (self._clock() - job.submitted_at) * 1e3
        self._observer.ended(job.handle.id, reason, len(job.request.prompt), job.tokens, ms)

    def _forget(self, job: Job) -> None:
        """Free the lane of a job that runs."""
        session = next((session for session, running in self._jobs.items() if running is job), None)
        if session is None:
            return
        self.lanes.release(session)
        del self._jobs[session]
        if session in self._prompts:
            self._prompts.remove(session)


def _make_room(session: Session, prompt: int, in_time: Callable[[], bool]) -> bool:
    """Lay out slots for what is left of a prompt a few times at most, for it takes others' time: twice as
    many each time, and all at once before it would take long. Whether there are enough for the next
    piece: it may take several steps until their memory is ready.
    """
    length, slots = session.length, session.slots
    left = prompt - length
    if length + min(left, PREFILL_ROWS) <= slots:
        return True
    more = left if length > MOVED_SLOTS else min(left, max(length, 2 * PREFILL_ROWS))
    if not session.prepare(more + SPARE_SLOTS, in_time):
        return False
    session.reserve(more + SPARE_SLOTS)
    return True
