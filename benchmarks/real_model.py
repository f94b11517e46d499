"""A bundle of a real LLM on held-out prompts of several kinds: are its tokens those of transformers,
are drafted tokens the plain ones, and how many tokens does a step give?

    python benchmarks/real_model.py BUNDLE MODEL PROMPTS.jsonl [--tokens 96] [--processes 2]

A prompt's "id" begins with its kind, as in "summary:12". Every prompt is decoded plainly, with
FIRP's drafts, with prompt lookup and with both in one tree of 16 rows, greedily and at temperature
0.8. Work that is done is kept in real_model.jsonl, so that a run that was stopped goes on; the tables
are of all lines there.
"""

import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
from table import Result

from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference
from firp.export.verify.tokens import generated_along
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import first_difference, plain_run

DONE = Path("real_model.jsonl")
ROWS = 16
TREES = {
    "FIRP": TreeConfig("dynamic", ROWS, None),
    "FIRP, one source": TreeConfig("dynamic", ROWS, 1),
    "lookup": TreeConfig.lookup(ROWS),
    "both": TreeConfig("dynamic", ROWS, None, drafters=DRAFTERS),
}
TEMPERATURES = {"greedy": 0.0, "temperature 0.8": 0.8}
_loaded = {}


def load(bundle, model):
    """The engine and the reference of this process, on one thread each."""
    if not _loaded:
        import torch

        torch.set_num_threads(1)
        engine = Engine.load(bundle, threads=1, check_hashes=False)
        _loaded[bundle] = engine, Reference(open_checkpoint(model), engine.manifest.precision.compute)
    return _loaded[bundle]


def decode(bundle, model, prompt, tokens):
    """One prompt, every way; what is worth keeping of it."""
    engine, reference = load(bundle, model)
    ids = engine.encode(prompt.content)
    found = {"id": prompt.id, "prompt_tokens": len(ids), "runs": {}}
    for name, temperature in TEMPERATURES.items():
        params = SamplingParams(tokens, temperature=temperature, seed=1)
        plain = plain_run(engine, ids, params)
        if not temperature:
            ends = engine.bundle.eos_token_ids
            (theirs,) = generated_along(reference, [ids], [plain.tokens], tokens, ends)
            found["generate"] = differing(plain, theirs, params)
        for way, tree in TREES.items():
            run = engine.generate(ids, params, tree=tree)
            found["runs"][f"{way}, {name}"] = {
                "decoded": run.stats.decoded_tokens,
                "steps": run.stats.steps,
                "differs": differing(plain, run.token_ids, params),
            }
    return found


def differing(plain, other, params):
    """None where both runs are the same, else where they part and the margin of the plain pick."""
    difference = first_difference(0, plain, other, params, "float32")
    return difference and [difference.position, difference.margin]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("prompts", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=96, show_default=True)
@click.option("--processes", default=2, show_default=True)
def main(bundle, model, prompts, tokens, processes):
    done = [json.loads(line) for line in DONE.read_text("utf-8").splitlines()] if DONE.is_file() else []
    known = {line["id"] for line in done}
    waiting = [prompt for prompt in read_prompts(prompts) if prompt.id not in known]
    with ProcessPoolExecutor(processes) as pool, DONE.open("a", encoding="utf-8") as file:
        jobs = [pool.submit(decode, bundle, model, prompt, tokens) for prompt in waiting]
        for job in as_completed(jobs):
            done.append(job.result())
            print(json.dumps(done[-1]), file=file, flush=True)
            print(f"{len(done)} of {len(known) + len(waiting)}", flush=True)
    report(done, tokens)


def report(done, tokens):
    """The tables of all prompts that are done."""
    result = Result("real_model", "A real LLM")
    sizes = sorted(line["prompt_tokens"] for line in done)
    caption = f"{len(done)} held-out prompts of {sizes[0]} to {sizes[-1]} tokens, {tokens} tokens each"
    table = result.table(f"Tokens a step, {ROWS} rows; {caption}", "kind", "prompts", *rows_of(done)[0])
    kinds = defaultdict(list)
    for line in done:
        kinds[line["id"].partition(":")[0]].append(line)
    for kind, lines in [*sorted(kinds.items()), ("all", done)]:
        table.add(kind, len(lines), *rows_of(lines)[1])
    same = result.table("Runs that are the same", "compared", "the same", "near ties: position and margin")
    compared = {"plain, greedy = generate of transformers": [line["generate"] for line in done]}
    for way in done[0]["runs"]:
        compared[f"{way} = plain"] = [line["runs"][way]["differs"] for line in done]
    for name, differs in compared.items():
        ties = [f"{position}: {margin:.1g}" for position, margin in filter(None, differs)]
        same.add(name, f"{differs.count(None)} of {len(differs)}", ", ".join(ties) or "none")
    result.write()


def rows_of(lines):
    """Names of the ways, and tokens a step of each over these lines."""
    runs = {way: [line["runs"][way] for line in lines] for way in lines[0]["runs"]}
    rates = [sum(run["decoded"] for run in way) / sum(run["steps"] for run in way) for way in runs.values()]
    return list(runs), [f"{rate:.2f}" for rate in rates]


if __name__ == "__main__":
    main()
