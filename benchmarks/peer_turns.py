"""Peers of `peers.py` that take turns, and the lines of what was measured.

In: peers, jobs. Out: lines in a file, each measured once, however often the run was stopped.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from peer_install import Absent, Peer
from peer_jobs import Job, Jobs
from peer_process import Pool, Worker

LOADS = 3
WARM_UP_TOKENS = 8
LOADED_TOKENS = 16  # decoded before memory is measured


class Lines:
    """What was measured, a JSON object a line in a file; each is measured once."""

    def __init__(self, file: Path, settings: dict[str, Any]):
        texts = file.read_text("utf-8").splitlines() if file.is_file() else [json.dumps(settings)]
        if json.loads(texts[0]) != settings:
            raise click.ClickException(
                f"'{file}' is of another run: {texts[0]}; choose another --name, or delete it"
            )
        self._file = file
        file.write_text("\n".join(texts) + "\n", "utf-8")
        self.all = [json.loads(text) for text in texts[1:]]
        self._known = {self._key(line) for line in self.all}

    @staticmethod
    def _key(line: dict[str, Any]) -> tuple:
        return tuple(line.get(key) for key in ("what", "name", "job", "turn"))

    def has(self, **line: Any) -> bool:
        return self._key(line) in self._known

    def add(self, **line: Any) -> None:
        """Keep a line."""
        self.all.append(line)
        self._known.add(self._key(line))
        with self._file.open("a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)


class Comparison:
    """Peers that take turns. loads: processes of each that are started for the time it takes; plain: no
    other way of any; absent: why those that are left out are, by label.
    """

    def __init__(self, lines: Lines, jobs: Jobs, log: Path, loads: int = LOADS, plain: bool = False):
        self.lines, self.jobs, self.loads, self.plain = lines, jobs, loads, plain
        self.peers: list[Peer] = []
        self.ways: dict[str, list[str]] = {}
        self.mib: dict[str, float] = {}
        self.absent: dict[str, str] = {}
        self._log = log.open("ab")

    def admit(self, label: str, make: Callable[[], Peer]) -> None:
        """Install a peer, measure how it loads, and how likely it finds the text."""
        try:
            peer = make()
            with Worker(peer, self._log) as worker:
                self.ways[peer.label] = ["plain"] if self.plain else worker.loaded["ways"]
                self._score(worker)
            self._load(peer)
            self.peers.append(peer)
        except Absent as error:
            self.absent[label] = str(error)

    def _score(self, worker: Worker) -> None:
        line = {"what": "score", "name": worker.peer.label}
        if self.jobs.scored and not self.lines.has(**line):
            found = worker.ask(score=self.jobs.scored)
            self.lines.add(**line, nats=found["nats"], tokens=len(self.jobs.scored) - 1)

    def _load(self, peer: Peer) -> None:
        job = self.jobs.prompts[0]
        for way in self.ways[peer.label]:
            for turn in range(self.loads):
                line = {"what": "load", "name": named(peer, way), "turn": turn}
                if not self.lines.has(**line):
                    with Worker(peer, self._log) as worker:
                        used = worker.ask(ids=job.ids, tokens=LOADED_TOKENS, way=way)
                        kept = {key: worker.loaded[key] for key in ("load_s", "mib", "versions")}
                        self.lines.add(**line, **kept, used_mib=used["mib"])
        names = {named(peer, way) for way in self.ways[peer.label]}
        self.mib[peer.label] = max(
            line["used_mib"] for line in self.lines.all if line["what"] == "load" and line["name"] in names
        )

    def run(self, turns: int) -> float:
        """Let the peers take turns; returns the processor time, in s, of those that waited."""
        warm_up = {"ids": self.jobs.prompts[0].ids, "tokens": WARM_UP_TOKENS}
        with Pool(self.mib, warm_up, self._log) as pool:
            for turn in range(turns):
                jobs = [(job, None) for job in self.jobs.prompts]
                jobs += [(job, int(job.id)) for job in self.jobs.contexts(turn)]
                for number, (job, context) in enumerate(jobs):
                    click.echo(f"turn {turn + 1} of {turns}, {number + 1} of {len(jobs)}", err=True)
                    for peer, way in self._order(turn + number):
                        self._turn(pool, peer, way, job, context, turn)
            return pool.idle_s

    def _order(self, first: int) -> Iterator[tuple[Peer, str]]:
        """All ways of all peers, another one first every time."""
        begin = first % max(len(self.peers), 1)
        for peer in self.peers[begin:] + self.peers[:begin]:
            yield from ((peer, way) for way in self.ways[peer.label])

    def _turn(self, pool: Pool, peer: Peer, way: str, job: Job, context: int | None, turn: int):
        line = {"what": "turn", "name": named(peer, way), "job": job.id, "turn": turn}
        if self.lines.has(**line) or peer.label in self.absent:
            return
        try:
            found = pool.ask(peer, ids=job.ids, tokens=job.tokens, way=way)
        except Absent as error:
            self.absent[peer.label] = str(error)
            return
        kept = {key: found[key] for key in ("seconds", "token_ids")}
        self.lines.add(**line, context=context, prompt_tokens=len(job.ids), **kept)


def named(peer: Peer, way: str) -> str:
    """The row of a peer's way of decoding."""
    return peer.label if way == "plain" else f"{peer.label}, {way}"
