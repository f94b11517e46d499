"""The engine's thread with everything that it owns, as the public API sees it.

In: checked requests. Out: handles. The thread begins with the first request, and ends when the
service is closed, or forgotten.
"""

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from firp.runtime.arguments import at_least, check_fields, whole
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.limits import Limits
from firp.runtime.drafters.interface import Drafter
from firp.runtime.loop.picker import Picker
from firp.runtime.machine import available_bytes
from firp.runtime.observer import NullObserver, Observer
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs, Request
from firp.runtime.scheduling.handle import Handle
from firp.runtime.scheduling.job import Job
from firp.runtime.scheduling.lanes import Lanes, default_bytes
from firp.runtime.scheduling.prefix_file import SavedPrefix, load_prefix, save_prefix
from firp.runtime.scheduling.prefixes import BLOCK, Prefixes
from firp.runtime.scheduling.scheduler import Scheduler
from firp.runtime.scheduling.statistics import EngineStats, Totals
from firp.runtime.scheduling.worker import Worker

_log = logging.getLogger("firp.engine")
MAX_BATCH = 64  # sequences of one pass: more would take longer than they save


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of an engine. Raises FirpError for values out of range."""

    max_batch: int = 8  # requests that decode together, 1 to 64
    # requests that wait when all lanes are taken, at least 1; one more is refused at once
    max_queue: int = 64
    kv_bytes: int | None = None  # of memory for keys and values; None: half of what is free at load
    # for prefixes that requests share, besides; 0: none; None: a quarter of what is free at load, and at
    # most half of kv_bytes, where those are given
    prefix_bytes: int | None = None
    # plain steps that a step may take in which a piece of a prompt is computed beside those who decode,
    # at least 1.5: the more, the sooner prompts are computed, and the longer the others wait for a token
    max_stall: float = 3.0

    def __post_init__(self):
        check_fields(self, _OPTIONS)


_OPTIONS = {
    "max_batch": whole(1, MAX_BATCH),
    "max_queue": whole(1),
    "kv_bytes": whole(1).or_none(),
    "prefix_bytes": whole(0).or_none(),
    "max_stall": at_least(1.5),
}


class Service:
    """Takes requests, and decodes them together. make_batch: memory for so many sequences; latency: of
    this device, None where it was not measured.
    """

    def __init__(
        self,
        manifest: Manifest,
        make_batch: Callable[[BatchSize], Batch],
        limits: Limits | None,
        latency: LatencyTable | None,
        tokenizer: Tokenizer | None,
        options: EngineOptions,
        observer: Observer | None,
    ):
        kv_bytes, prefix_bytes = default_bytes(available_bytes(), limits, options.kv_bytes)
        if options.prefix_bytes is not None and not limits:
            prefix_bytes = options.prefix_bytes
        self._prefixes = Prefixes(prefix_bytes)
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._lanes = Lanes(manifest, make_batch, options.max_batch, kv_bytes, limits, self._prefixes)
        self._totals = Totals(observer or NullObserver())
        scheduler = Scheduler(self._lanes, latency, self._totals, options.max_stall)
        self._worker = Worker(scheduler, options.max_queue, self._totals)
        self._numbers = itertools.count(1)
        weakref.finalize(self, self._worker.close, 0).atexit = False

    @property
    def healthy(self) -> bool:
        """Whether requests are taken."""
        return self._worker.healthy

    def stats(self) -> EngineStats:
        """Totals so far, and what is now."""
        lanes = self._lanes
        held = lanes.cache_bytes, lanes.held_bytes
        return self._totals.stats(lanes.active, self._worker.waiting, *held, self._prefixes.stats)

    def submit(
        self,
        request: Request,
        needs: Needs,
        drafter: Drafter,
        guarded: bool,
        deadline_s: float | None = None,
        request_id: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Handle:
        """Hand a request to the engine's thread; drafter: of this request alone. Raises
        EngineBusyError, EngineClosedError, RequestTooLargeError, and FirpError for the id of another.
        """
        self._lanes.check(needs)
        handle = Handle(request_id or self._new_id())
        picker = Picker(request)
        job = Job(request, needs, drafter, picker, guarded, handle, self._tokenizer, deadline_s, cancel)
        self._worker.submit(job)
        return handle

    def _new_id(self) -> str:
        names = map("request-{}".format, self._numbers)
        return next(name for name in names if name not in self._totals.open)

    def save_prefix(self, tokens: Sequence[int], path: Path, notes: Any) -> int:
        """Write what is cached of the beginning of a text to a file; return how many tokens that are.
        Raises FirpError.
        """
        blocks = self._prefixes.longest(tokens)
        save_prefix(path, self._manifest, tokens, blocks, notes)
        if not blocks and len(tokens) >= BLOCK:
            line = "'%s' holds what was said, but nothing of the cache: %d tokens will be computed again"
            _log.warning(line, path, len(tokens))
        return len(blocks) * BLOCK

    def restore_prefix(self, path: Path, read_notes: Callable[[Any], Any]) -> SavedPrefix:
        """Read such a file, and share what it holds. read_notes: checks notes. Raises FirpError."""
        saved = load_prefix(path, self._manifest, read_notes)
        self._prefixes.add(saved.tokens, lambda start, stop: saved.blocks[start // BLOCK])
        return saved

    def close(self) -> None:
        """End all requests, and give the memory back."""
        self._worker.close()
