"""Thousands of random requests against one engine: lengths, parameters, grammars, samples,
conversations, arrival times, cancellations, deadlines, bad input. Every finished output must be that of
the same request alone.

In: a bundle. Out: a table of what ended how, what differed, and what was left over.
"""

import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
from soak_requests import Drawn, Script, draw_requests, draw_scripts, follow
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.errors import EngineBusyError, FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.tuning.parity import NEAR_TIE

DISTINCT = 200  # requests that are drawn from, so that each is decoded alone only once
SCRIPTS = 12  # conversations likewise
PATIENCE_S = 3600  # for a request: this process may be stopped for a while
GROWTH = 2.0  # % of resident memory over the second half, at most
OPTIONS = EngineOptions(max_batch=8, max_queue=32, prefix_bytes=64 << 20)


def rss_mib() -> float:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def misuse(engine, rng):
    """A request that must be refused in one line."""
    bad = rng.choice(
        [
            lambda: engine.submit([]),
            lambda: engine.submit([engine.model.vocab_size]),
            lambda: engine.submit([5] * (engine.context + 1)),
            lambda: engine.submit([5], SamplingParams(temperature=-1)),
            lambda: engine.submit([5], deadline_s=-1),
        ]
    )
    try:
        bad()
    except FirpError:
        return
    raise AssertionError("a bad request was taken")


class Soak:
    """The run. ended: how requests ended; differences: margins of tokens that differ."""

    def __init__(self, engine: Engine, drawn: list[Drawn], scripts: list[Script], seed: int, folder: Path):
        self.engine, self.drawn, self.scripts, self.folder = engine, drawn, scripts, folder
        self.rng = random.Random(seed)
        self.ended = Counter()
        self.submitted = 0
        self.differences = []
        self.talks: list[Future] = []
        self.memory: list[float] = []
        self.files: list[int] = []

    def run(self, count: int) -> None:
        """Submit, and check what has ended."""
        running = []
        with ThreadPoolExecutor(2) as talkers:
            for index in range(count):
                if self.rng.random() < 0.02:
                    self.talks.append(talkers.submit(self.talk, self.rng.randrange(SCRIPTS), index))
                else:
                    running += self.one()
                if self.rng.random() < 0.05:
                    time.sleep(self.rng.random() * 0.02)
                while len(running) > 24:
                    self.check(*running.pop(0))
                if index % max(1, count // 100) == 0:
                    gc.collect()
                    self.memory.append(rss_mib())
                    self.files.append(open_files())
            for started in running:
                self.check(*started)
            for talk in self.talks:
                talk.result(PATIENCE_S)

    def one(self) -> list[tuple[int, int, Handle]]:
        """Submit a random request; return its number with each sample's, and their handles."""
        rng = self.rng
        if rng.random() < 0.02:
            misuse(self.engine, rng)
            self.ended["refused"] += 1
            return []
        number = rng.randrange(len(self.drawn))
        prompt, params, samples = self.drawn[number]
        deadline = rng.choice([None] * 18 + [0.001, 0.05])
        self.submitted += 1  # an id is of one request: the same one may run still
        name = f"soak-{self.submitted}"
        options = {"plain": rng.random() < 0.3, "deadline_s": deadline, "request_id": name}
        try:
            handles = self.engine.submit_samples(prompt, params, len(samples), **options)
        except EngineBusyError:
            self.ended["busy"] += 1
            time.sleep(0.005)
            return []
        if rng.random() < 0.1:
            threading.Timer(rng.random() * 0.1, rng.choice(handles).cancel).start()
        return [(number, sample, handle) for sample, handle in enumerate(handles)]

    def check(self, number: int, sample: int, handle: Handle) -> None:
        """Compare a finished request with the same one alone."""
        result = handle.result(PATIENCE_S)
        self.ended[result.finish_reason] += 1
        alone = self.drawn[number].samples[sample]
        for place, (got, wanted) in enumerate(zip(result.token_ids, alone.tokens, strict=False)):
            if got != wanted:
                self.differences.append((f"{number}-{sample}", place, alone.margins[place]))
                return
        whole = result.finish_reason in ("stop", "length")
        if whole and (result.token_ids, result.text, result.finish_reason) != alone[:3]:
            self.differences.append((f"{number}-{sample}", len(alone.tokens), float("nan")))

    def talk(self, number: int, index: int) -> None:
        """Have one of the conversations."""
        while True:
            try:
                right = follow(self.engine, self.scripts[number], self.folder / f"{index}.session")
                break
            except EngineBusyError:
                time.sleep(0.05)
        self.ended["conversations, saved and gone on with"] += 1
        if not right:
            self.differences.append((f"conversation {number}", 0, float("nan")))


@contextmanager
def loaded(bundle: Path, threads: int | None) -> Iterator[tuple[Engine, Path]]:
    """An engine that can chat, and a folder that is gone afterwards."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from support.chat_bundles import add_chat

    with tempfile.TemporaryDirectory() as folder:
        tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        chatty = add_chat(bundle, Path(folder) / "bundle", **tokens)
        with Engine.load(chatty, threads=threads, options=OPTIONS) as engine:
            yield engine, Path(folder)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--requests", "count", default=10_000)
@click.option("--tokens", default=40, help="New tokens of a request, at most.")
@click.option("--threads", default=None, type=int, help="Of each graph.")
@click.option("--seed", default=0)
@click.option("--name", default="soak")
def main(bundle, count, tokens, threads, seed, name):
    """Soak an engine of BUNDLE."""
    with loaded(bundle, threads) as (engine, folder):
        rng = random.Random(seed)
        drawn = draw_requests(engine, rng, DISTINCT, tokens)
        soak = Soak(engine, drawn, draw_scripts(engine, rng, SCRIPTS), seed, folder)
        began = time.perf_counter()
        soak.run(count)
        seconds = time.perf_counter() - began
        stats = engine.stats()
    report(soak, count, stats, seconds, name)


def report(soak: Soak, count: int, stats, seconds: float, name: str) -> None:
    """Write the table; the exit status is 1 where something differs, or is left."""
    limit = NEAR_TIE[soak.engine.manifest.arithmetic]
    unexcused = [d for d in soak.differences if not d[2] <= max(limit.logit_gap, limit.probability)]
    second_half = soak.memory[len(soak.memory) // 2 :]
    growth = (max(second_half) - second_half[0]) / second_half[0] * 100
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("firp")]
    lengths = sorted(len(drawn.prompt) for drawn in soak.drawn)
    result = Result(name, "Random requests against one engine")
    table = result.table("What came of them", "what", "how many")
    table.add("requests and conversations", count)
    for reason, number in sorted(soak.ended.items()):
        table.add(f"ended: {reason}", number)
    table.add("outputs that differ from the same request alone", len(soak.differences))
    table.add("of them, that no near tie excuses", len(unexcused))
    table.add(
        "active, waiting, reserved bytes at the end",
        f"{stats.active}, {stats.waiting}, {stats.cache_bytes}",
    )
    table.add("threads left after close", len(threads))
    table.add("open files at the start, at the end", f"{soak.files[0]}, {soak.files[-1]}")
    table.add("growth of resident memory over the second half, %", f"{growth:.2f}")
    table.add("resident memory at the end, MiB", f"{soak.memory[-1]:.0f}")
    table.add("prompts, tokens: median, longest", f"{lengths[len(lengths) // 2]}, {lengths[-1]}")
    table.add("prefix hits of lookups", f"{stats.prefixes.hits} of {stats.prefixes.lookups}")
    table.add("steps", stats.steps)
    table.add("tokens", stats.tokens)
    table.add("seconds", f"{seconds:.0f}")
    params = [drawn.params for drawn in soak.drawn]
    kinds = result.table(f"What the {len(params)} distinct requests ask for", "what", "how many")
    default = SamplingParams()
    for field in sorted(vars(default)):
        if field != "seed":
            kinds.add(field, sum(getattr(each, field) != getattr(default, field) for each in params))
    kinds.add("several samples", sum(len(drawn.samples) > 1 for drawn in soak.drawn))
    result.write()
    left = stats.active + stats.waiting + stats.cache_bytes + len(threads)
    if unexcused or left or growth > GROWTH or soak.files[-1] > soak.files[0] + 2:
        raise SystemExit(f"failed: {unexcused[:3]}, {threads}, growth {growth:.2f} %, files {soak.files[-1]}")


if __name__ == "__main__":
    main()
