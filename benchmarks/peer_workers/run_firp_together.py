"""Decodes with firp for several clients at once, for `load.py`: one engine, a thread a client."""

import itertools
import threading
import time

from protocol import serve

from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling import worker
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.tuning.parity import first_difference, plain_run

LISTENED = 20  # tokens of each request before a long prompt arrives, and after it
MOST_TOKENS = 1500  # of a request that runs beside it


class Firp:
    def __init__(self, model, threads, batch, max_stall):
        options = EngineOptions(max_batch=batch, prefix_bytes=0, max_stall=max_stall)
        self.engine = Engine.load(model, threads=threads, options=options)
        self.batch = batch
        self.ways = ("plain", "drafted") if self.engine.best_tree else ("plain",)

    def together(self, clients, way):
        threads = [
            threading.Thread(target=self._ask, args=(clients, client, way)) for client in range(clients.count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, clients, client, way):
        while (number := clients.following(client)) is not None:
            params = SamplingParams(clients.tokens[number], ignore_eos=True)
            for chunk in self.engine.stream(clients.prompts[number], params, plain=way == "plain"):
                clients.emit(number, chunk.token_ids)

    def forget(self):
        """Begin anew: an engine without work gives back its lanes, and the texts that they hold; then it
        has lanes again, of other texts.
        """
        time.sleep(4 * worker.IDLE_SECONDS)
        params = SamplingParams(4, ignore_eos=True)
        handles = [self.engine.submit([3 + lane] * 3, params, plain=True) for lane in range(self.batch)]
        for handle in handles:
            handle.result()
        return {}

    def counts(self):
        """So far: steps, sequences that had drafts in one, and drafts that were accepted."""
        stats = self.engine.stats()
        drafted = sum(by_depth.get(1, 0) for by_depth in stats.drafted.values())
        accepted = sum(sum(by_depth.values()) for by_depth in stats.accepted.values())
        return {"steps": stats.steps, "drafted": drafted, "accepted": accepted}

    def alone(self, ids, token_ids):
        """Where tokens leave those of the same prompt alone and plain, and how near another pick was."""
        params = SamplingParams(len(token_ids), ignore_eos=True)
        run = plain_run(self.engine, ids, params)
        found = first_difference(0, run, token_ids, params, self.engine.manifest.arithmetic)
        return found._asdict() if found else {"position": None, "margin": None, "near_tie": True}

    def arrival(self, running, prompt):
        """Seconds between tokens of requests that run: before a long prompt, while it is computed, each with
        its share of that time, and after it: their texts are longer then, and so are plain steps.
        prompt: its token ids, of which as many are taken as the context holds.
        """
        prompt = prompt[: self.engine.context - 1]
        most = min(MOST_TOKENS, self.engine.context - max(map(len, running)))
        params = SamplingParams(most, ignore_eos=True)
        stamps = [[] for _ in running]

        def listen(handle, times):
            for chunk in handle:
                if chunk.token_ids:
                    times.append(time.perf_counter())

        handles = [self.engine.submit(ids, params, plain=True) for ids in running]
        listeners = [threading.Thread(target=listen, args=pair) for pair in zip(handles, stamps, strict=True)]
        for listener in listeners:
            listener.start()
        _wait_for(stamps, LISTENED)
        arrived = time.perf_counter()
        next(iter(self.engine.submit(prompt, SamplingParams(1), plain=True)))
        computed = time.perf_counter()
        _wait_for(stamps, max(map(len, stamps)) + LISTENED)
        for handle in handles:
            handle.cancel()
        for listener in listeners:
            listener.join()
        before, during, after = [], [], []
        for times in stamps:
            for earlier, later in itertools.pairwise(times):
                if later <= arrived:
                    before.append(later - earlier)
                elif arrived <= earlier and later <= computed:
                    during.append([(earlier - arrived) / (computed - arrived), later - earlier])
                elif computed <= earlier:
                    after.append(later - earlier)
        half = len(before) // 2  # while the first ones began alone
        return {"prompt_tokens": len(prompt), "before": before[half:], "during": during, "after": after}


def _wait_for(stamps, tokens):
    while min(map(len, stamps)) < tokens:
        time.sleep(0.01)


if __name__ == "__main__":
    worker.IDLE_SECONDS = 0.2  # else an engine without work waits for half a minute
    serve(Firp, ["onnxruntime"])
