"""Throughput and time between tokens of requests that run together, plain and drafted, and while a
long prompt arrives.

In: bundles and prompts. Out: results/load*.md. As many clients as a row says send one request after
the other; plain and drafted take turns. All of it is end to end, prompts included.
"""

import itertools
import statistics
import threading
import time

import click
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions


class Client(threading.Thread):
    """Sends some requests one after the other, and notes when tokens come."""

    def __init__(self, engine, prompts, params, plain):
        super().__init__()
        self._asked = engine, prompts, params, plain
        self.gaps = []  # seconds between chunks of a request
        self.firsts = []  # seconds to the first
        self.tokens = 0
        self.outputs = []

    def run(self):
        engine, prompts, params, plain = self._asked
        for prompt in prompts:
            last = time.perf_counter()
            ids = []
            for chunk in engine.stream(prompt, params, plain=plain):
                if chunk.token_ids:
                    now = time.perf_counter()
                    (self.gaps if ids else self.firsts).append(now - last)
                    last = now
                    ids += chunk.token_ids
            self.tokens += len(ids)
            self.outputs.append(ids)


def run_clients(engine, prompts, params, clients, plain):
    """Tokens a second, gaps, times to the first token, outputs by prompt."""
    share = [prompts[place::clients] for place in range(clients)]
    threads = [Client(engine, some, params, plain) for some in share if some]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    gaps = [gap for thread in threads for gap in thread.gaps]
    firsts = [first for thread in threads for first in thread.firsts]
    outputs = {}
    for some, thread in zip(share, threads, strict=False):
        outputs |= {id(prompt): ids for prompt, ids in zip(some, thread.outputs, strict=True)}
    return sum(thread.tokens for thread in threads) / seconds, gaps, firsts, outputs


def milliseconds(values, quantile):
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e3:.0f}"


def quantiles(values):
    return f"{milliseconds(values, 0.5)}, {milliseconds(values, 0.99)}"


@click.command()
@click.argument("bundles", nargs=-1, required=True)
@click.option("--prompts", "file", required=True)
@click.option("--clients", multiple=True, type=int, default=(1, 4, 8, 16))
@click.option("--requests", default=32)
@click.option("--tokens", default=48)
@click.option("--turns", default=3)
@click.option("--long-prompt", default=4000, help="Tokens of the prompt that arrives while others decode.")
@click.option("--name", default="load")
def main(bundles, file, clients, requests, tokens, turns, long_prompt, name):
    """Measure BUNDLES under load."""
    result = Result(name, "Requests that run together")
    table = result.table(
        f"{requests} requests of {tokens} new tokens, median of {turns} turns",
        *("bundle", "clients", "plain, tokens/s", "drafted, tokens/s", "drafted / plain (spread)"),
        *(
            "over one client, plain",
            "ms between tokens: plain p50, p99",
            "drafted p50, p99",
            "outputs alike",
        ),
    )
    arriving = result.table(
        f"One prompt of {long_prompt} tokens arrives while seven requests decode, plain",
        *(
            "bundle",
            "between tokens before, ms p50",
            "while it is computed, p50",
            "longest",
            "in plain steps",
        ),
    )
    prompts = [prompt.content for prompt in read_prompts(file)]
    prompts = (prompts * (requests // len(prompts) + 1))[:requests]
    for bundle in bundles:
        engine = Engine.load(bundle, options=EngineOptions(max_queue=64, prefix_bytes=0))
        ids = [engine.encode(prompt) for prompt in prompts]
        params = SamplingParams(tokens, ignore_eos=True)
        run_clients(engine, ids[:4], params, 2, False)
        alone = None
        for count in clients:
            rates = {True: [], False: []}
            gaps = {True: [], False: []}
            found = {}
            for turn in range(turns):
                for plain in (True, False) if turn % 2 == 0 else (False, True):
                    rate, between, _, outputs = run_clients(engine, ids, params, count, plain)
                    rates[plain].append(rate)
                    gaps[plain] += between
                    found[plain] = outputs
            ratios = [drafted / plain for plain, drafted in zip(rates[True], rates[False], strict=True)]
            plain_rate, drafted_rate = statistics.median(rates[True]), statistics.median(rates[False])
            alone = alone or plain_rate
            alike = sum(found[True][key] == found[False][key] for key in found[True])
            table.add(
                *(bundle, count, f"{plain_rate:.0f}", f"{drafted_rate:.0f}"),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{plain_rate / alone:.2f}",
                *(
                    f"{milliseconds(gaps[plain], 0.5)}, {milliseconds(gaps[plain], 0.99)}"
                    for plain in (True, False)
                ),
                f"{alike} of {len(found[True])}",
            )
        if long_prompt < engine.context:
            arriving.add(bundle, *arrival(engine, ids, long_prompt))
        engine.close()
    result.write()


def arrival(engine, ids, long_prompt):
    """Time between tokens of seven requests before and while a long prompt is computed."""
    params = SamplingParams(400, ignore_eos=True)
    stamps = []

    def listen(handle):
        for chunk in handle:
            if chunk.token_ids:
                stamps.append((handle.id, time.perf_counter()))

    handles = [engine.submit(prompt[:64], params, plain=True) for prompt in ids[:7]]
    listeners = [threading.Thread(target=listen, args=(handle,)) for handle in handles]
    for listener in listeners:
        listener.start()
    while len(stamps) < 7 * 20:
        time.sleep(0.01)
    arrived = time.perf_counter()
    prompt = (ids[0] * (long_prompt // len(ids[0]) + 1))[:long_prompt]
    next(iter(engine.submit(prompt, SamplingParams(1), plain=True)))
    computed = time.perf_counter()
    for handle in handles:
        handle.cancel()
    for listener in listeners:
        listener.join()
    before, during = [], []
    for handle in handles:
        times = [at for name, at in stamps if name == handle.id]
        for earlier, later in itertools.pairwise(times):
            if later < arrived:
                before.append(later - earlier)
            elif earlier >= arrived and later <= computed:
                during.append(later - earlier)
    before = before[len(before) // 2 :]
    plain_step = statistics.median(before)
    return (
        milliseconds(before, 0.5),
        milliseconds(during, 0.5),
        milliseconds(during, 1.0),
        f"{statistics.median(during) / plain_step:.1f}, longest {max(during) / plain_step:.1f}",
    )


if __name__ == "__main__":
    main()
