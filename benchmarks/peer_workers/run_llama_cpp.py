"""Decodes with llama.cpp, for `peers.py`, through llama-cpp-python and with its defaults."""

import itertools
import time

import llama_cpp
import numpy as np
from protocol import in_turns, serve


class LlamaCpp:
    ways = ("plain",)

    def __init__(self, model, threads, context):
        self.options = {"model_path": model, "n_threads": threads, "n_threads_batch": threads}
        self.options["verbose"] = False
        self.llama = llama_cpp.Llama(n_ctx=context, **self.options)

    def generate(self, ids, tokens, way, emit):
        self.llama.reset()  # else a prompt that begins like the last one is in the cache already
        for token in itertools.islice(self.llama.generate(ids, temp=0.0), tokens):
            emit([token])

    def rows(self, ids, counts, turns):
        self.llama.reset()
        self.llama.eval(ids)

        def one(count):
            self.llama.n_tokens = len(ids)  # what lies behind is forgotten
            begin = time.perf_counter()
            self.llama.eval(ids[:count])
            return 1e3 * (time.perf_counter() - begin)

        return in_turns(one, counts, turns)

    def score(self, ids):
        scoring = llama_cpp.Llama(n_ctx=len(ids), logits_all=True, **self.options)
        scoring.eval(ids)
        logits = scoring.scores[: len(ids) - 1].astype(np.float64)
        return (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(ids) - 1), ids[1:]]).sum()


if __name__ == "__main__":
    serve(LlamaCpp, ["llama-cpp-python"])
