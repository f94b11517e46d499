"""A bundle of a real LLM on chat prompts of several kinds: are its tokens those of transformers, are
drafted tokens the plain ones, and how many tokens does a step give?

    python benchmarks/real_model.py BUNDLE MODEL PROMPTS.jsonl [--tokens 128] [--processes 2]

A prompt's "id" begins with its kind, as in "summarization:12". Every prompt is decoded plainly, by
transformers' `generate`, and with each of --way in trees of 16 rows, greedily and at temperature
0.8. Work that is done is kept in real_model.jsonl, so that a run that was stopped goes on, and another
file of prompts or other ways add to it; the tables are of all lines there, and a copy of them is the
raw file beside the tables.
"""

import json
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
from table import RESULTS, Result

from firp.export.sources.open import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import first_difference, plain_run

DONE = Path("real_model.jsonl")
ROWS = 16
TREES = {
    "FIRP": TreeConfig("dynamic", ROWS, None),
    "lookup": TreeConfig.lookup(ROWS),
    "both": TreeConfig("dynamic", ROWS, None, drafters=DRAFTERS),
}
_loaded = {}


def load(bundle, model, generate):
    """The engine and, where it generates, transformers' model of this process, on one thread each."""
    if not _loaded:
        import torch

        from firp.export.weights.torch_model import torch_model

        torch.set_num_threads(1)
        engine = Engine.load(bundle, threads=1, check_hashes=False)
        precision = getattr(torch, engine.manifest.precision.compute)
        _loaded[bundle] = engine, torch_model(open_checkpoint(model), precision) if generate else None
    return _loaded[bundle]


def decode(bundle, model, prompt, options):
    """One prompt, every way; what is worth keeping of it."""
    engine, theirs = load(bundle, model, options["generate"])
    ids = engine.encode(prompt.content)
    found = {"id": prompt.id, "prompt_tokens": len(ids), "runs": {}}
    for kind, temperature in {"greedy": 0.0, "temperature 0.8": 0.8}.items():
        tokens = options["sampled_tokens" if temperature else "tokens"]
        params = SamplingParams(tokens, temperature=temperature, seed=1)
        plain = plain_run(engine, ids, params)
        if theirs and not temperature:
            written = generated(theirs, ids, tokens, engine.bundle.eos_token_ids)
            found["generate"] = {"tokens": len(written), "differs": differing(plain, written, params)}
        for way in options["way"]:
            run = engine.generate(ids, params, tree=TREES[way])
            found["runs"][f"{way}, {kind}"] = {
                "tokens": len(run.token_ids),
                "decoded": run.stats.decoded_tokens,
                "steps": run.stats.steps,
                "differs": differing(plain, run.token_ids, params),
            }
    return found


def generated(model, ids, tokens, ends):
    """What transformers' greedy `generate` writes after these ids."""
    import torch

    prompt = torch.tensor([ids])
    settings = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": list(ends), "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[
            0, len(ids) :
        ].tolist()


def differing(plain, other, params):
    """None where both runs are the same, else where they part and the margin of the plain pick."""
    difference = first_difference(0, plain, other, params, "float32")
    return difference and [difference.position, difference.margin]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("prompts", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=128, show_default=True, help="Of a greedy run.")
@click.option("--sampled-tokens", default=64, show_default=True, help="Of a run at temperature 0.8.")
@click.option("--way", multiple=True, type=click.Choice(list(TREES)), default=list(TREES), show_default=True)
@click.option("--generate/--no-generate", default=True, help="Let transformers write, too.")
@click.option("--note", help="A line below the tables, such as what the prompts are.")
@click.option("--processes", default=2, show_default=True)
def main(bundle, model, prompts, note, processes, **options):
    done = [json.loads(line) for line in DONE.read_text("utf-8").splitlines()] if DONE.is_file() else []
    known = {line["id"] for line in done}
    waiting = [prompt for prompt in read_prompts(prompts) if prompt.id not in known]
    with ProcessPoolExecutor(processes) as pool, DONE.open("a", encoding="utf-8") as file:
        jobs = [pool.submit(decode, bundle, model, prompt, options) for prompt in waiting]
        for job in as_completed(jobs):
            done.append(job.result())
            print(json.dumps(done[-1]), file=file, flush=True)
            print(f"{len(done)} of {len(known) + len(waiting)}", flush=True)
    report(done, note)


def report(done, note):
    """The tables of all prompts that are done."""
    result = Result("real_model", "A real LLM")
    ways = list(dict.fromkeys(way for line in done for way in line["runs"]))
    kinds = defaultdict(list)
    for line in sorted(done, key=lambda line: line["id"]):
        kinds[line["id"].partition(":")[0]].append(line)
    sizes = [line["prompt_tokens"] for line in done]
    caption = f"Tokens a step, {ROWS} rows (and prompts); prompts of {min(sizes)} to {max(sizes)} tokens"
    table = result.table(caption, "kind", *ways)
    for kind, lines in [*kinds.items(), ("all", done)]:
        table.add(kind, *(rate([line["runs"][way] for line in lines if way in line["runs"]]) for way in ways))
    same = result.table(
        "Runs that are the same", "compared", "the same", "tokens", "where they part: position and margin"
    )
    compared = {
        "plain, greedy = generate of transformers": [line["generate"] for line in done if "generate" in line]
    }
    compared |= {
        f"{way} = plain": [line["runs"][way] for line in done if way in line["runs"]] for way in ways
    }
    for name, runs in compared.items():
        parted = [run["differs"] for run in runs if run["differs"]]
        places = ", ".join(f"{position}: {margin:.1g}" for position, margin in parted)
        tokens = f"{sum(run['tokens'] for run in runs):,}"
        same.add(name, f"{len(runs) - len(parted)} of {len(runs)}", tokens, places or "nowhere")
    if note:
        result.note(note)
    result.write()
    shutil.copyfile(DONE, RESULTS / DONE.name)


def rate(runs):
    """Tokens a step, and of how many runs."""
    return f"{sum(run['decoded'] for run in runs) / sum(run['steps'] for run in runs):.2f} ({len(runs)})"


if __name__ == "__main__":
    main()
