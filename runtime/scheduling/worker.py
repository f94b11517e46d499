"""The engine's thread: the only one that touches what is below the mailbox.

In: jobs, from any thread. Out: their chunks. It sleeps while there is nothing to do, and gives the
memory of keys and values back when that lasts.
"""

import atexit
import logging
import os
import threading
import weakref
from collections import deque

from firp.runtime.errors import EngineBusyError, EngineClosedError, FirpError
from firp.runtime.scheduling.job import Job
from firp.runtime.scheduling.scheduler import Scheduler
from firp.runtime.scheduling.statistics import Totals

IDLE_SECONDS = 30.0  # after which memory is given back

_log = logging.getLogger("firp.engine")
_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all threads before the interpreter does: native code that outlives it aborts the process."""
    for worker in list(_workers):
        worker.close()


def _leave_all() -> None:
    """In a fork: no thread has come along, neither ours nor those of the backend."""
    for worker in list(_workers):
        worker.leave()


os.register_at_fork(after_in_child=_leave_all)


class Worker:
    """A thread that decodes. max_queue: requests that may wait for it beyond those that free lanes
    take.
    """

    def __init__(self, scheduler: Scheduler, max_queue: int, totals: Totals):
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._totals = totals
        self._mailbox: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._submitting = False  # whether the thread that has the lock submits
        self._error: str | None = None  # what its thread died of
        self._thread = threading.Thread(target=self._run, name="firp-engine", daemon=True)
        self._started = False
        _workers.add(self)

    @property
    def healthy(self) -> bool:
        """Whether it takes requests."""
        return not self._closing and self._error is None

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._mailbox) + len(self._scheduler.waiting)

    def submit(self, job: Job) -> None:
        """Hand a job over. Raises EngineBusyError when the queue is full, EngineClosedError when it will
        never be taken, FirpError for the id of a request that has not ended.
        """
        name = job.handle.id
        with self._changed:
            if not self.healthy:
                raise EngineClosedError("the engine is closed", got=self._error, fix="load it again")
            if name in self._totals.open:
                fix = "another one, or wait for its end"
                raise FirpError("request id in use", got=f"{name!r:.100}", expected="a new one", fix=fix)
            queued = len(self._totals.open) - self._scheduler.lanes.most  # when every lane is taken
            if queued >= self._max_queue:
                raise EngineBusyError(
                    "the engine is busy",
                    got=f"{queued} requests in the queue",
                    expected=f"fewer than {self._max_queue}",
                    fix="try again later",
                )
            if not self._started:
                self._thread.start()
                self._started = True
            self._mailbox.append(job)
            self._changed.notify()
            self._submitting = True
            try:
                self._totals.submitted(name)
            except BaseException:  # Ctrl-C: its caller will have no handle
                job.handle.cancel()
                raise
            finally:
                self._submitting = False

    def close(self, timeout: float | None = None) -> None:
        """End all requests, and the thread; waits for the step that runs now, but not where an observer
        calls it: the thread waits for that one.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
            awaited = self._submitting or threading.current_thread() is self._thread
        if self._started and not awaited:
            self._thread.join(timeout)

    def leave(self) -> None:
        """Take nothing more, in a fork of the process whose thread it is."""
        self._changed = threading.Condition()  # whoever held the old one may not be here
        self._started = False
        self._error = "a fork of the process that loaded it"

    def _run(self) -> None:
        try:
            while self._drain():
                self._scheduler.step()
            self._scheduler.close()
        except BaseException as error:  # whatever it is: nobody may wait for ever
            _log.critical("the engine's thread has died", exc_info=error)
            reason = f"{type(error).__name__}: {error!s:.200}"
            with self._changed:
                self._error = reason
                self._scheduler.waiting.extend(self._mailbox)
                self._mailbox.clear()
            self._scheduler.fail(EngineClosedError("the engine's thread has died", got=reason))
        self._scheduler.lanes.give_back()

    def _drain(self) -> bool:
        """Take what was submitted; wait where there is nothing to do. False: it is over."""
        with self._changed:
            if self._scheduler.idle:
                arrived = self._changed.wait_for(self._has_news, IDLE_SECONDS)
                if not arrived:
                    self._scheduler.lanes.give_back()
                    self._changed.wait_for(self._has_news)
            self._scheduler.waiting.extend(self._mailbox)
            self._mailbox.clear()
            return not self._closing

    def _has_news(self) -> bool:
        return bool(self._mailbox) or self._closing
