"""Decodes with firp, for `peers.py`: plainly, and as a user does after `firp tune`, under guard."""

import numpy as np
from protocol import in_turns, serve

from firp.runtime.engine import Engine
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree import chain


class Firp:
    def __init__(self, model, threads):
        options = EngineOptions(max_batch=1, prefix_bytes=0)
        self.engine = Engine.load(model, threads=threads, options=options)
        self.ways = ("plain", "drafted") if self.engine.tree else ("plain",)

    def generate(self, ids, tokens, way, emit):
        params = SamplingParams(tokens, ignore_eos=True)
        for chunk in self.engine.stream(ids, params, plain=way == "plain"):
            emit(chunk.token_ids)
        other = [0 if ids[0] else 1] * 3  # the cache must not hold what is asked next
        self.engine.generate(other, SamplingParams(1), plain=True)

    def rows(self, ids, counts, turns):
        """Milliseconds of passes of several rows after a prompt, in turns."""
        most = max(counts)
        session = self.engine.session(len(ids) + most, max(len(ids), most))
        session.forward(PassPlan(chain(ids), bring_logits=False, prompt=True))
        session.commit(range(len(ids)))

        def one(count):
            before = sum(session.spent_ms.values())
            session.forward(PassPlan(chain(ids[:count]), bring_logits=False))
            return sum(session.spent_ms.values()) - before

        return in_turns(one, counts, turns)

    def score(self, ids):
        params = SamplingParams(len(ids) - 1, ignore_eos=True)
        request = self.engine.request(ids[:1], params)
        forced = Forced(request, ids)
        for _ in self.engine.steps(request, picker=forced):
            pass
        return forced.nats


class Forced(Picker):
    """Picks the tokens of a given text, and adds up how unlikely they were."""

    def __init__(self, request, ids):
        super().__init__(request)
        self.needs_logits = True
        self.ids = ids
        self.nats = 0.0

    def choose(self, logits, position):
        token = self.ids[position]
        self.nats += float(np.logaddexp.reduce(logits.astype(np.float64)) - logits[token])
        return token


if __name__ == "__main__":
    serve(Firp, ["onnxruntime"])
