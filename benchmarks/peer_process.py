"""The parent's side of `peers.py`: workers that are started, asked one at a time, and kept while
memory allows.

In: `Peer`s. Out: answers of their workers (`peer_workers/protocol.py`); `Absent` where one fails.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from peer_install import Absent, Peer

from firp.runtime.machine import available_bytes

PAUSE_S = 0.1  # after an answer; threads that spin while they wait for work give up before
ROOM_MIB = 2048  # left for everything else


class Worker:
    """The process of one peer. `loaded`: what it said when the model was there.

    log: where it prints to. Raises Absent when the model does not load.
    """

    def __init__(self, peer: Peer, log: IO[bytes]):
        self.peer = peer
        threads = str(peer.options["threads"])
        self._process = subprocess.Popen(
            [*peer.command, json.dumps(peer.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        self.loaded = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question. Raises Absent when it is an error, or the process died."""
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        time.sleep(PAUSE_S)
        if not line:
            raise Absent(f"{self.peer.label}: the process ended with status {self._process.wait()}")
        found = json.loads(line)
        if "error" in found:
            self.close()
            raise Absent(f"{self.peer.label}: {found['error']}")
        return found

    def cpu_seconds(self) -> float:
        """Processor time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Pool:
    """Workers that stay loaded and warm, the last used longest, while memory allows.

    mib: what each peer takes, by label; warm_up: a question without its way; log: as for `Worker`.
    `idle_s`: processor time of those that waited.
    """

    def __init__(self, mib: dict[str, float], warm_up: dict[str, Any], log: IO[bytes]):
        self.idle_s = 0.0
        self._mib, self._warm_up, self._log = mib, warm_up, log
        self._workers: dict[str, tuple[Worker, float]] = {}  # with the processor time when it was last seen

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker, _ in self._workers.values():
            worker.close()

    def ask(self, peer: Peer, **question: Any) -> dict[str, Any]:
        """The answer of a warm worker. Raises Absent."""
        worker, seen_s = self._workers.pop(peer.label, None) or (self._start(peer), None)
        if seen_s is not None:
            self.idle_s += worker.cpu_seconds() - seen_s
        found = worker.ask(**question)
        self._workers[peer.label] = worker, worker.cpu_seconds()
        return found

    def versions(self, peer: Peer) -> str:
        """Of what a worker that was asked decodes with."""
        return self._workers[peer.label][0].loaded["versions"]

    def _start(self, peer: Peer) -> Worker:
        while self._workers and not self._fits(self._mib[peer.label]):
            oldest, _ = self._workers.pop(next(iter(self._workers)))
            oldest.close()
        worker = Worker(peer, self._log)
        for way in worker.loaded["ways"]:
            worker.ask(**self._warm_up, way=way)
        return worker

    def _fits(self, mib: float) -> bool:
        free = available_bytes()
        return free is None or free / 2**20 > mib + ROOM_MIB


@contextmanager
def another_job() -> Iterator[None]:
    """A process that computes on one core without end."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
