"""Requests that run together: throughput and time between tokens by the number of clients, of firp
plain and drafted and, where they are asked for, of its peers; and what others wait for while a long
prompt arrives.

    python benchmarks/load.py --bundle float32=BUNDLE --bundle int8=BUNDLE --prompts FILE.jsonl \\
        [--model DIR] [--gguf FILE] [--turns 3]

As many clients as a row says ask for one answer after the other; all of them the same prompts. --model
brings onnxruntime-genai's Engine, --gguf llama.cpp, installed as for `peers.py`. Every way of decoding
takes its turn with every number of clients, another one first each time; nothing of a prompt is in a
cache before.

Lines of what was measured are kept in WORK/NAME/lines.jsonl, so that a run that was stopped goes on,
and more turns, bundles or peers can be added; the tables in results/NAME.md are of all lines there.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import peer_install as install
from load_table import report
from peer_install import WORKERS, Absent, Peer, Workshop
from peer_jobs import encoder
from peer_process import Pool
from peer_turns import Lines, named
from table import Result

from firp.runtime.machine import cores, processor
from firp.runtime.prompts import read_prompts
from firp.runtime.scheduling.service import EngineOptions

PATH = click.Path(path_type=Path, exists=True)
THREE = EngineOptions().max_stall
GENAI, GGUF_TYPE = ("float32", "int8"), "Q8_0"
FIRP = "firp "
RUNNING, RUNNING_TOKENS = 7, 64  # requests that a long prompt comes to, and tokens of each prompt
MIB = 1500  # of a worker, roughly


class Asked(NamedTuple):
    """What all ways of decoding are asked for."""

    prompts: list[list[int]]
    tokens: list[int]  # new ones, after each prompt
    clients: tuple[int, ...]
    long_prompt: list[int]  # empty: none arrives

    @property
    def batch(self) -> int:
        """Requests at once, at most."""
        return max(self.clients)


@click.command()
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="LABEL=BUNDLE")
@click.option("--prompts", "file", type=PATH, required=True, help="Prompt file.")
@click.option("--model", type=PATH, help="The same model, a Hugging Face directory: onnxruntime-genai too.")
@click.option("--gguf", type=PATH, help="The same model, a GGUF file: llama.cpp too.")
@click.option("--clients", multiple=True, type=int, default=(1, 4, 8, 16), show_default=True)
@click.option("--requests", default=16, show_default=True, help="Prompts, the first of the file.")
@click.option("--longest", default=300, show_default=True, help="Tokens; prompts with more are skipped.")
@click.option("--tokens", default=48, show_default=True, help="Generated after a prompt, on average.")
@click.option("--turns", default=3, show_default=True)
@click.option(
    "--long-prompt", default=4000, show_default=True, help="Tokens of the prompt that arrives; 0: none."
)
@click.option(
    "--max-stall",
    "stalls",
    multiple=True,
    type=float,
    default=(THREE,),
    show_default=True,
    help="Plain steps that others wait at most while firp computes a prompt.",
)
@click.option("--threads", default=cores(), show_default=True)
@install.work_option
@click.option("--name", default="load", show_default=True, help="Of the files.")
def main(
    bundles, file, model, gguf, clients, requests, longest, tokens, turns, long_prompt, stalls, threads,
    work, name,
):  # fmt: skip
    if any("=" not in bundle for bundle in bundles):
        raise click.UsageError("a --bundle is LABEL=BUNDLE")
    folders = {label: Path(path).resolve() for label, path in (bundle.split("=", 1) for bundle in bundles)}
    known = read_prompts(file)
    encode = encoder(next(iter(folders.values())), known)
    short = [ids for ids in map(encode, known) if len(ids) <= longest]
    if not short:
        raise click.UsageError(f"no prompt has at most {longest} tokens")
    asked = Asked(
        [short[place % len(short)] for place in range(requests)],
        lengths(requests, tokens),
        tuple(sorted(clients)),
        (short[0] * (long_prompt // len(short[0]) + 1))[:long_prompt],
    )
    shop = Workshop(work.resolve(), name, threads)
    settings = {"prompts": str(file), "requests": requests, "longest": longest, "tokens": asked.tokens}
    settings |= {"long_prompt": long_prompt, "threads": threads, "machine": processor()}
    lines = Lines(shop.folder / "lines.jsonl", settings)
    absent: dict[str, str] = {}
    made = []
    for label, make in peers(shop, folders, stalls, model, gguf, asked):
        try:
            made.append(make())
        except Absent as error:
            absent[label] = str(error)
    with (shop.folder / "workers.log").open("ab") as log:
        measure(lines, made, asked, turns, absent, log)
    result = Result(name, f"Requests that run together, {threads} threads")
    report(result, lines.all, asked.tokens)
    for label, why in absent.items():
        result.note(f"{label} is left out: {why}")
    result.write()


def lengths(requests: int, tokens: int) -> list[int]:
    """New tokens of each request, from half to one and a half times as many. Requests of one length would
    end and begin together, step by step, as those of users do not.
    """
    found = np.linspace(tokens / 2, tokens * 3 / 2, requests).round().astype(int)
    return np.random.default_rng(0).permutation(found).tolist()


def peers(
    shop: Workshop,
    bundles: dict[str, Path],
    stalls: Sequence[float],
    model: Path | None,
    gguf: Path | None,
    asked: Asked,
) -> Iterator[install.Peer]:
    """Labels, and what makes a peer that decodes together."""
    together = partial(decoding_together, batch=asked.batch)
    for (label, bundle), stall in itertools.product(bundles.items(), stalls):
        shown = label if stall == THREE else f"{label}, max_stall {stall:g}"
        yield (
            FIRP + shown,
            lambda shown=shown, bundle=bundle, stall=stall: together(
                install.firp(shop, shown, bundle), "run_firp_together.py", max_stall=stall
            ),
        )
    for name in GENAI if model else ():
        yield (
            f"onnxruntime-genai {name}",
            lambda name=name: together(install.genai(shop, model, name), "run_genai_engine.py"),
        )
    if gguf:
        context = max(map(len, asked.prompts)) + max(asked.tokens)
        yield (
            f"llama.cpp {GGUF_TYPE}",
            lambda: together(install.llama_cpp(shop, gguf, GGUF_TYPE, context), "run_llama_parallel.py"),
        )


def decoding_together(peer: Peer, script: str, **options: Any) -> Peer:
    """A peer with the worker that decodes up to options["batch"] requests at once."""
    return peer._replace(
        command=[peer.command[0], str(WORKERS / script)], options={**peer.options, **options}
    )


def measure(
    lines: Lines, made: list[Peer], asked: Asked, turns: int, absent: dict[str, str], log: Any
) -> None:
    """Let the peers take turns."""
    first = asked.prompts[:4]
    warm_up = {"prompts": first, "tokens": [4] * len(first), "clients": 4}
    with Pool(dict.fromkeys([peer.label for peer in made], MIB), warm_up, log) as pool:
        for turn in range(turns):
            for place, clients in enumerate(asked.clients):
                click.echo(f"turn {turn + 1} of {turns}, {clients} clients", err=True)
                begin = (turn + place) % len(made)
                for peer in made[begin:] + made[:begin]:
                    guarded(absent, peer, _together, lines, pool, asked, clients, turn)
            for peer in made:
                if asked.long_prompt and peer.label.startswith(FIRP):
                    guarded(absent, peer, _arrival, lines, pool, asked, turn)


def guarded(absent: dict[str, str], peer: Peer, measured: Any, *arguments: Any) -> None:
    """One measurement of a peer, which is left out from then on where it fails."""
    if peer.label in absent:
        return
    try:
        measured(peer, *arguments)
    except Absent as error:
        absent[peer.label] = str(error)


def _together(peer: Peer, lines: Lines, pool: Pool, asked: Asked, clients: int, turn: int) -> None:
    ways = ("plain", "drafted") if peer.label.startswith(FIRP) else ("plain",)
    for way in ways if turn % 2 == 0 else ways[::-1]:
        line = {"what": "together", "name": named(peer, way), "job": str(clients), "turn": turn}
        if lines.has(**line):
            continue
        before = {}
        if peer.label.startswith(FIRP):
            pool.ask(peer, call="forget")
            before = pool.ask(peer, call="counts")
        question = {"prompts": asked.prompts, "tokens": asked.tokens, "clients": clients}
        found = pool.ask(peer, **question, way=way)
        if before:
            after = pool.ask(peer, call="counts")
            found["counts"] = {name: after[name] - before[name] for name in before}
        lines.add(**line, versions=pool.versions(peer), **found)
        if before:
            _differences(peer, lines, pool, asked, line, found["token_ids"])


def _differences(
    peer: Peer, lines: Lines, pool: Pool, asked: Asked, line: dict[str, Any], outputs: list[list[int]]
) -> None:
    """Lines of outputs that are not those of firp's first run, each with its margin."""
    runs = (known for known in lines.all if known["what"] == "together" and known["name"] == peer.label)
    first = next(runs, {"token_ids": outputs})["token_ids"]
    for number, (ids, expected) in enumerate(zip(outputs, first, strict=True)):
        if ids != expected:
            found = pool.ask(peer, call="alone", ids=asked.prompts[number], token_ids=ids)
            job = f"{line['job']}:{number}"
            lines.add(what="difference", name=line["name"], job=job, turn=line["turn"], **found)


def _arrival(peer: Peer, lines: Lines, pool: Pool, asked: Asked, turn: int) -> None:
    line = {"what": "arrival", "name": peer.label, "turn": turn}
    most = min(RUNNING, asked.batch - 1)  # the long prompt needs a place too
    if most and not lines.has(**line):
        running = [ids[:RUNNING_TOKENS] for ids in asked.prompts[:most]]
        pool.ask(peer, call="forget")
        found = pool.ask(peer, call="arrival", running=running, prompt=asked.long_prompt)
        lines.add(**line, running=len(running), **found)


if __name__ == "__main__":
    main()
