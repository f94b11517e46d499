"""The worker's side of `peers.py`: a process that holds one model, asked by JSON lines on stdin and
answering by JSON lines on stdout.

It runs in the peer's own environment, so that nothing but the standard library is imported here.
What the peer prints goes to stderr. The worker's first line says what it loaded; then

    {"ids": [1, 2, 3], "tokens": 2, "way": "plain"} → {"token_ids": [4, 5], "seconds": [0.1, 0.2], …}
    {"score": [1, 2, 3]} → {"nats": 7.5}
    {"prompts": [[1, 2], …], "tokens": [2, …], "clients": 4, "way": "plain"} → {"token_ids": [[4, 5], …], …}

where `seconds` is when each token was there, counted from the question, and `nats` the negative log
likelihood of every token but the first; the last is asked by several clients at once
(`clients.py`). {"error": "…"} is the answer to what could not be done.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

from clients import Clients


def serve(load, packages):
    """Answer until stdin ends. load: makes the model of the options in the first argument, a JSON
    object; packages: whose versions are told.

    A model has `ways`, the names of its ways of decoding; `generate(ids, tokens, way, emit)`, which
    goes on past the end of a text and calls `emit` with lists of token ids as they come; and
    `score(ids)`, which returns nats. One that decodes together has `together(clients, way)` instead,
    and may have more: a question {"call": NAME, …} is answered by the method of that name.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(work):
        try:
            found = work()
        except Exception as error:
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(found), file=out, flush=True)
        return found

    def loaded():
        nonlocal model
        options = json.loads(sys.argv[1])
        begin = time.perf_counter()
        model = load(**options)
        seconds = time.perf_counter() - begin
        versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        return {"load_s": seconds, "mib": resident(), "ways": list(model.ways), "versions": versions}

    model = None
    if "error" in answer(loaded):
        return
    for line in sys.stdin:
        asked = json.loads(line)
        if "score" in asked:
            answer(lambda asked=asked: {"nats": float(model.score(asked["score"]))})
        elif "prompts" in asked:
            answer(lambda asked=asked: together(model, **asked))
        elif "call" in asked:
            answer(lambda asked=asked: getattr(model, asked.pop("call"))(**asked))
        else:
            answer(lambda asked=asked: generated(model, **asked))


def generated(model, ids, tokens, way):
    """Tokens and when they came. Raises RuntimeError where they are not as many as asked for."""
    token_ids, seconds = [], []

    def emit(new):
        now = round(time.perf_counter() - begin, 6)
        token_ids.extend(map(int, new))
        seconds.extend(now for _ in new)

    begin = time.perf_counter()
    model.generate(ids, tokens, way, emit)
    if len(token_ids) != tokens:
        raise RuntimeError(f"{len(token_ids)} tokens where {tokens} were asked for")
    return {"token_ids": token_ids, "seconds": seconds, "mib": resident()}


def together(model, prompts, tokens, clients, way):
    """What several clients get at once."""
    asking = Clients(prompts, tokens, clients)
    model.together(asking, way)
    return asking.found()


def in_turns(one, counts, turns):
    """{"ms": {rows: milliseconds of each turn}} of passes of several rows: `one` makes one of them. What
    comes before the first turn is not counted.
    """
    found = {count: [] for count in counts}
    for turn in range(turns + 1):
        for count in counts:
            ms = one(count)
            if turn:
                found[count].append(round(ms, 3))
    return {"ms": found}


def resident():
    """The proportional set size of this process in MiB: pages that others map too count in part."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
