"""A bundle of a real LLM on chat prompts of several kinds: are its tokens those of transformers, are
drafted tokens the plain ones, and how many tokens does a step give?

    python benchmarks/real_model.py BUNDLE MODEL PROMPTS.jsonl [--tokens 128] [--processes 2]

A prompt is one message of a user; its "id" begins with its kind, as in "summarization:12". Every
prompt is decoded plainly, and with each of --way in trees of 16 rows, greedily and at temperature 0.8,
on one session, whose cache holds the prompt after the first. With --generate, transformers'
greedy `generate` writes too, for prompts of similar length together. Work that is done is kept in
real_model.jsonl, so that a run that was stopped goes on, and another file of prompts or other ways add
to it; the tables are of all lines there, and a copy of the lines lies beside the tables. Nothing here
is a speed, so it may run beside other work.
"""

import json
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import zip_longest
from pathlib import Path

import click
from table import RESULTS, Result

from firp.export.sources.open import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import first_difference, plain_run

DONE = Path("real_model.jsonl")
ROWS = 16
TOGETHER = 10  # prompts that transformers continues in one batch
TREES = {
    "FIRP": TreeConfig("dynamic", ROWS, None),
    "lookup": TreeConfig.lookup(ROWS),
    "both": TreeConfig("dynamic", ROWS, None, drafters=DRAFTERS),
}
_loaded = {}


def load(bundle):
    """The engine of this process, on one thread."""
    if bundle not in _loaded:
        _loaded[bundle] = Engine.load(bundle, threads=1, check_hashes=False)
    return _loaded[bundle]


def load_theirs(model, compute):
    """transformers' model of this process, on one thread, in the type of the bundle."""
    if model not in _loaded:
        import torch

        from firp.export.weights.torch_model import torch_model

        torch.set_num_threads(1)
        _loaded[model] = torch_model(open_checkpoint(model), getattr(torch, compute))
    return _loaded[model]


def generate_together(bundle, model, prompts, tokens):
    """What transformers' greedy `generate` writes after each prompt, padded on the left."""
    import torch

    engine = load(bundle)
    theirs = load_theirs(model, engine.manifest.precision.compute)
    ends = list(engine.bundle.eos_token_ids)
    encoded = [engine.encode(prompt.content) for prompt in prompts]
    longest = max(map(len, encoded))
    padded = torch.tensor([[ends[0]] * (longest - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
    settings = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
    with torch.no_grad():
        written = theirs.generate(padded, attention_mask=mask, **settings)[:, longest:].tolist()
    return [
        {"id": prompt.id, "generated": until_end(row, ends)}
        for prompt, row in zip(prompts, written, strict=True)
    ]


def until_end(tokens, ends):
    """The tokens up to the first that ends a sequence, it included."""
    return tokens[: next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))]


def decode(bundle, prompt, theirs, options):
    """One prompt, every way; what is worth keeping of it. theirs: what transformers wrote, or None."""
    engine = load(bundle)
    found = {"id": prompt.id, "prompt_tokens": len(engine.encode(prompt.content)), "runs": {}}
    session = None
    for kind, temperature in {"greedy": 0.0, "temperature 0.8": 0.8}.items():
        tokens = options["sampled_tokens" if temperature else "tokens"]
        params = SamplingParams(tokens, temperature=temperature, seed=1)
        plain, _, session = answer(engine, prompt, params, None, session)
        if theirs and not temperature:
            differs = differing(engine, prompt, params, plain, theirs)
            found["generate"] = {"tokens": len(theirs), "differs": differs}
        for way in options["way"]:
            tokens, stats, session = answer(engine, prompt, params, TREES[way], session)
            found["runs"][f"{way}, {kind}"] = {
                "tokens": len(tokens),
                "decoded": stats.decoded_tokens,
                "steps": stats.steps,
                "differs": differing(engine, prompt, params, plain, tokens),
            }
    return [found]


def answer(engine, prompt, params, tree, session):
    """The answer's tokens, what they cost, and the session: one that has the prompt is taken up."""
    conversation = engine.conversation(params, plain=tree is None, tree=tree)
    conversation.session = session
    (message,) = prompt.messages
    tokens = [token for chunk in conversation.send(message["content"]) for token in chunk.token_ids]
    return tokens, conversation.stats, conversation.session


def differing(engine, prompt, params, plain, other):
    """None where both runs are the same, else where they part and the margin of the plain pick."""
    if plain == other:
        return None
    run = plain_run(engine, engine.encode(prompt.content), params)
    difference = first_difference(0, run, other, params, "float32")
    place = next(at for at, pair in enumerate(zip_longest(plain, other)) if pair[0] != pair[1])
    return [place, difference.margin if difference and difference.position == place else None]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("prompts", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=128, show_default=True, help="Of a greedy run.")
@click.option("--sampled-tokens", default=32, show_default=True, help="Of a run at temperature 0.8.")
@click.option("--way", multiple=True, type=click.Choice(list(TREES)), default=list(TREES), show_default=True)
@click.option("--generate/--no-generate", default=True, help="Let transformers write, too.")
@click.option("--name", help="Of this run, for the names of files in results/.")
@click.option("--note", help="A line below the tables, such as what the prompts are.")
@click.option("--processes", default=2, show_default=True)
def main(bundle, model, prompts, name, note, processes, **options):
    lines = [json.loads(line) for line in DONE.read_text("utf-8").splitlines()] if DONE.is_file() else []
    known = {line["id"] for line in lines if "runs" in line}
    waiting = [prompt for prompt in read_prompts(prompts) if prompt.id not in known]
    generated = {line["id"]: line["generated"] for line in lines if "generated" in line}

    def finish(jobs):
        for job in as_completed(jobs):
            for line in job.result():
                lines.append(line)
                print(json.dumps(line), file=file, flush=True)
                yield line

    with ProcessPoolExecutor(processes) as pool, DONE.open("a", encoding="utf-8") as file:
        if options["generate"]:
            missing = sorted((p for p in waiting if p.id not in generated), key=lambda p: len(str(p.content)))
            batches = [missing[at : at + TOGETHER] for at in range(0, len(missing), TOGETHER)]
            written = [
                pool.submit(generate_together, bundle, model, batch, options["tokens"]) for batch in batches
            ]
            for line in finish(written):
                generated[line["id"]] = line["generated"]
                print(f"generate: {len(generated)}", flush=True)
        jobs = [pool.submit(decode, bundle, prompt, generated.get(prompt.id), options) for prompt in waiting]
        for count, _ in enumerate(finish(jobs), len(known) + 1):
            print(f"{count} of {len(known) + len(waiting)}", flush=True)
    report([line for line in lines if "runs" in line], f"real_model_{name}" if name else "real_model", note)


def report(done, name, note):
    """The tables of all prompts that are done."""
    result = Result(name, "A real LLM")
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
    written = [line["generate"] for line in done if "generate" in line]
    compared = {"plain, greedy = generate of transformers": written} if written else {}
    compared |= {
        f"{way} = plain": [line["runs"][way] for line in done if way in line["runs"]] for way in ways
    }
    for what, runs in compared.items():
        parted = [run["differs"] for run in runs if run["differs"]]
        places = ", ".join(
            f"{position}: {'no tie' if margin is None else f'{margin:.1g}'}" for position, margin in parted
        )
        tokens = f"{sum(run['tokens'] for run in runs):,}"
        same.add(what, f"{len(runs) - len(parted)} of {len(runs)}", tokens, places or "nowhere")
    if note:
        result.note(note)
    result.write()
    shutil.copyfile(DONE, RESULTS / f"{name}.jsonl")


def rate(runs):
    """Tokens a step, and of how many runs; nothing of none."""
    steps = sum(run["steps"] for run in runs)
    return f"{sum(run['decoded'] for run in runs) / steps:.2f} ({len(runs)})" if steps else ""


if __name__ == "__main__":
    main()
