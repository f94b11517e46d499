"""Decodes with onnxruntime-genai, for `peers.py`."""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from protocol import in_turns, serve


class Genai:
    ways = ("plain",)

    def __init__(self, model, threads):
        about = json.loads((Path(model) / "genai_config.json").read_text())["model"]
        # layers with a window refuse a cache that is shorter than it
        self.least_tokens = about["decoder"].get("sliding_window", {}).get("window_size", 0)
        config = genai.Config(model)
        decoder = {"session_options": {"intra_op_num_threads": threads}}
        # a text must end somewhere: at a token that hardly ever comes, and is not let through
        changes = {"model": {"eos_token_id": about["vocab_size"] - 1, "decoder": decoder}}
        config.overlay(json.dumps(changes))
        self.model = genai.Model(config)

    def _generator(self, tokens):
        params = genai.GeneratorParams(self.model)
        longest = max(tokens, self.least_tokens)
        params.set_search_options(min_length=longest, max_length=longest, do_sample=False)
        return genai.Generator(self.model, params)

    def generate(self, ids, tokens, way, emit):
        generator = self._generator(len(ids) + tokens)
        generator.append_tokens(np.array([ids], np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
            emit(generator.get_next_tokens())

    def rows(self, ids, counts, turns):
        generator = self._generator(len(ids) + max(counts) + 1)
        generator.append_tokens(np.array([ids], np.int32))

        def one(count):
            begin = time.perf_counter()
            generator.append_tokens(np.array([ids[:count]], np.int32))
            ms = 1e3 * (time.perf_counter() - begin)
            generator.rewind_to(len(ids))
            return ms

        return in_turns(one, counts, turns)

    def score(self, ids):
        generator = self._generator(len(ids) + 1)
        generator.append_tokens(np.array([ids], np.int32))
        logits = generator.get_output("logits")[0, :-1].astype(np.float64)
        return (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(ids) - 1), ids[1:]]).sum()


if __name__ == "__main__":
    serve(Genai, ["onnxruntime-genai", "onnxruntime"])
