"""Thousands of random requests against one engine: lengths, parameters, arrival times, cancellations,
deadlines, bad input. Every finished output must be that of the same request alone.

In: a bundle. Out: a table of what ended how, what differed, and what was left over.
"""

import gc
import random
import threading
import time
from collections import Counter
from pathlib import Path

import click
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.errors import EngineBusyError, FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.tuning.parity import NEAR_TIE, plain_run

DISTINCT = 200  # requests that are drawn from, so that each is decoded alone only once


def rss_mib() -> float:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def make_requests(engine, rng, most_tokens):
    """Prompts and params; some prompts begin alike."""
    system = [rng.randrange(3, engine.model.vocab_size) for _ in range(130)]
    requests = []
    for index in range(DISTINCT):
        prompt = [rng.randrange(3, engine.model.vocab_size) for _ in range(rng.choice([1, 3, 9, 30, 90]))]
        if rng.random() < 0.3:
            prompt = system[: rng.randrange(1, 130)] + prompt
        params = SamplingParams(
            max_new_tokens=rng.randrange(1, most_tokens),
            temperature=rng.choice([0, 0, 0.7, 1.2]),
            top_k=rng.choice([0, 0, 20]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
            logprobs=rng.choice([None, None, 2]),
            ignore_eos=rng.random() < 0.5,
            seed=index,
        )
        requests.append((prompt, params))
    return requests


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

    def __init__(self, engine, requests, expected, seed):
        self.engine, self.requests, self.expected = engine, requests, expected
        self.rng = random.Random(seed)
        self.ended = Counter()
        self.differences = []
        self.lock = threading.Lock()

    def one(self):
        """Submit a random request; return its number and handle, None where it was refused."""
        rng = self.rng
        if rng.random() < 0.02:
            misuse(self.engine, rng)
            self.ended["refused"] += 1
            return None
        number = rng.randrange(len(self.requests))
        prompt, params = self.requests[number]
        deadline = rng.choice([None] * 18 + [0.001, 0.05])
        try:
            handle = self.engine.submit(
                prompt, params, plain=rng.random() < 0.3, deadline_s=deadline, request_id=f"soak-{number}"
            )
        except EngineBusyError:
            self.ended["busy"] += 1
            time.sleep(0.005)
            return None
        if rng.random() < 0.1:
            threading.Timer(rng.random() * 0.1, handle.cancel).start()
        return number, handle

    def check(self, number, handle):
        """Compare a finished request with the same one alone."""
        result = handle.result(300)
        self.ended[result.finish_reason] += 1
        tokens, margins = self.expected[number]
        for place, (got, wanted) in enumerate(zip(result.token_ids, tokens, strict=False)):
            if got != wanted:
                self.differences.append((number, place, margins[place]))
                return
        if result.finish_reason in ("stop", "length") and result.token_ids != tokens:
            self.differences.append((number, len(tokens), float("nan")))


@click.command()
@click.argument("bundle", type=click.Path(exists=True))
@click.option("--requests", "count", default=10_000)
@click.option("--tokens", default=40, help="New tokens of a request, at most.")
@click.option("--seed", default=0)
@click.option("--name", default="soak")
def main(bundle, count, tokens, seed, name):
    """Soak an engine of BUNDLE."""
    engine = Engine.load(bundle, options=EngineOptions(max_batch=8, max_queue=32, prefix_bytes=64 << 20))
    requests = make_requests(engine, random.Random(seed), tokens)
    runs = [plain_run(engine, prompt, params) for prompt, params in requests]
    soak = Soak(engine, requests, [(run.tokens, run.margins) for run in runs], seed)
    running, memory = [], []
    began = time.perf_counter()
    for index in range(count):
        if started := soak.one():
            running.append(started)
        if soak.rng.random() < 0.05:
            time.sleep(soak.rng.random() * 0.02)
        while len(running) > 24:
            soak.check(*running.pop(0))
        if index % max(1, count // 100) == 0:
            gc.collect()
            memory.append(rss_mib())
    for started in running:
        soak.check(*started)
    seconds = time.perf_counter() - began
    stats = engine.stats()
    limit = NEAR_TIE[engine.manifest.arithmetic]
    unexcused = [d for d in soak.differences if not d[2] <= max(limit.logit_gap, limit.probability)]
    second_half = memory[len(memory) // 2 :]
    growth = (max(second_half) - second_half[0]) / second_half[0] * 100
    engine.close()
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("firp")]
    result = Result(name, "Random requests against one engine")
    table = result.table("What came of them", "what", "how many")
    table.add("requests", count)
    for reason, number in sorted(soak.ended.items()):
        table.add(f"ended: {reason}", number)
    table.add("outputs that differ from the same request alone", len(soak.differences))
    table.add("of them, that no near tie excuses", len(unexcused))
    table.add(
        "active, waiting, reserved bytes at the end",
        f"{stats.active}, {stats.waiting}, {stats.cache_bytes}",
    )
    table.add("threads left after close", len(threads))
    table.add("growth of resident memory over the second half, %", f"{growth:.2f}")
    table.add("resident memory at the end, MiB", f"{memory[-1]:.0f}")
    table.add("prefix hits of lookups", f"{stats.prefixes.hits} of {stats.prefixes.lookups}")
    table.add("steps", stats.steps)
    table.add("tokens", stats.tokens)
    table.add("seconds", f"{seconds:.0f}")
    result.write()
    if unexcused or threads or stats.active:
        raise SystemExit(f"failed: {unexcused[:3]}, {threads}")


if __name__ == "__main__":
    main()
