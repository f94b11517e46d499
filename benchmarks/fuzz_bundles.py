"""Hostile bundles: one change each, whose sizes and digests are made to fit, and what becomes of them.

python benchmarks/fuzz_bundles.py BUNDLE... [--count 3000] [--of-a-command 10] [--seed 1]

A mutant ends in one line (a FirpError), or decodes: then drafted output is plain output, and where
neither weights nor what chooses tokens were changed, it is the output of the bundle itself. Commands
that read a bundle end in one line too, or do what they are for. Anything else (another exception, a
warning, a signal, more than the time limit) is a failure, and printed.
"""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from bundle_mutants import Mutant, mutate
from click.testing import CliRunner
from table import Result

from firp.cli import COMMANDS
from firp.runtime.bundle.format import load_bundle
from firp.runtime.commands.inspect import inspect
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig

LONGEST_LINE = 1200  # characters: what, got and expected are cut, paths in a fix are not
SECONDS = 20  # of one mutant
COMMAND_SECONDS = 120  # of one mutant, by a command
_MEMORY = 6 << 30  # bytes of address space
_PLACES = (3, 14, 15, 92)  # of the prompt's tokens in the vocabulary
_PROMPTS = '{"input_ids": [3, 4, 5]}\n{"input_ids": [2, 2, 2, 2, 2, 2, 2]}\n'
_BUILD = "--backend tensorrt-rtx --compute-capability 8.9 --max-context 64 --max-rows 16 --force"
# what a command is given besides the bundle; {folder}: where _PROMPTS lie, and what it may write
ASKED = {
    "generate": "--prompts {folder}/prompts.jsonl --max-new-tokens 4",
    "bench": "--prompts {folder}/prompts.jsonl --max-new-tokens 8",
    "tune": "--prompts {folder}/prompts.jsonl",
    "profile": "--rows 1 --cached 16 --layer-rows 1",
    "verify": "--layers",
    "build": _BUILD,
    "triton": "-o {folder}/triton",
}
OUTCOMES = ("one line", "the right tokens", "other weights, other tokens", "done", "failures")


def decode(bundle: Path) -> dict[str, Any]:
    """What becomes of a bundle: {"error"} of one line, or {"tokens"} and whether drafts keep them."""
    try:
        loaded = load_bundle(bundle)
        for flags in ([], ["--json"]):
            CliRunner().invoke(inspect, [str(bundle), *flags], catch_exceptions=False, standalone_mode=False)
        engine = Engine.load(bundle, threads=1)
        prompt = [place % engine.model.vocab_size for place in _PLACES]
        greedy = SamplingParams(8, ignore_eos=True)
        plain = engine.generate(prompt, greedy, plain=True).token_ids
        trees = draft_trees(engine)
        lossless = all(engine.generate(prompt, greedy, tree=tree).token_ids == plain for tree in trees)
        sampled = SamplingParams(8, temperature=0.8, seed=3, ignore_eos=True)
        lossless &= (
            engine.generate(prompt, sampled).token_ids
            == engine.generate(prompt, sampled, plain=True).token_ids
        )
        if engine.tokenizer:
            engine.generate("Hello, wörld" if loaded.manifest.model.vocab_size > 100 else "a", greedy)
        return {"tokens": plain, "lossless": lossless}
    except FirpError as error:
        return {"error": str(error)}


def draft_trees(engine: Engine) -> list[TreeConfig]:
    """Trees that a bundle must be able to draft: its own, and another one."""
    manifest = engine.manifest
    if manifest.quantization:
        chain = manifest.quantization.takes_drafts and manifest.num_predictors
        return [TreeConfig.chain(manifest.num_predictors)] if chain else []
    other = TreeConfig() if manifest.num_predictors else TreeConfig.lookup(6)
    return [other, engine.best_tree or other]


def command(bundle: Path, verb: str) -> dict[str, Any]:
    """What a command does with a bundle: {"error"} of one line, or {"done"}; and whether what it drafted
    was what it decoded plainly.
    """
    folder = bundle.parent
    (folder / "prompts.jsonl").write_text(_PROMPTS)
    arguments = [str(bundle), *ASKED[verb].format(folder=folder).split()]
    try:
        invoked = getattr(import_module(COMMANDS[verb][0]), verb)
        CliRunner().invoke(invoked, arguments, catch_exceptions=False, standalone_mode=False)
        return {"done": True}
    except FirpError as error:
        differs = verb == "bench" and isinstance(error, CheckFailedError)
        return {"foreign": str(error)} if differs else {"error": str(error)}


def _work(jobs: Any) -> None:
    """Judge one bundle after the other, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    while True:
        path, verb = jobs.recv()
        try:
            with warnings.catch_warnings():
                if verb is None:  # what commands load may have warnings of its own
                    warnings.simplefilter("error")
                jobs.send(decode(Path(path)) if verb is None else command(Path(path), verb))
        except BaseException as error:
            jobs.send({"foreign": f"{type(error).__name__}: {error!s:.200}"})


class Worker:
    """A process that decodes bundles; one that hangs or dies is replaced."""

    def __init__(self):
        self._context = multiprocessing.get_context("fork")
        self._start()

    def _start(self) -> None:
        self._jobs, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def decode(self, bundle: Path, verb: str | None = None) -> dict[str, Any]:
        """As `decode`, or as `command` with a verb; {"foreign"} for anything but one line."""
        self._jobs.send((str(bundle), verb))
        seconds = COMMAND_SECONDS if verb else SECONDS
        try:
            for _ in range(seconds * 10):  # a machine that sleeps meanwhile is not counted
                if self._jobs.poll(0.1):
                    return self._jobs.recv()
            said = f"more than {seconds} s"
        except EOFError:
            said = "the process died"
        self.close()
        self._start()
        return {"foreign": said}

    def close(self) -> None:
        """End the process."""
        if self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()


def judge(found: dict[str, Any], mutant: Mutant, right: list[int]) -> tuple[bool, str]:
    """Whether an outcome is one that a bundle may have, and its name."""
    if "foreign" in found:
        return False, found["foreign"]
    if "error" in found:
        line = found["error"]
        good = "\n" not in line and len(line) <= LONGEST_LINE
        return good, "one line" if good else f"a line of {len(line)} characters"
    if "done" in found:
        return True, "done"
    if not found["lossless"]:
        return False, "drafted is not plain"
    if found["tokens"] == right:
        return True, "the right tokens"
    return mutant.other_tokens, "other weights, other tokens" if mutant.other_tokens else "other tokens"


def fuzz(
    bundle: Path, count: int, seed: int, report: Callable[[str], None], of_a_command: int = 0
) -> Counter:
    """Outcomes by what was changed, or asked, and name. report: is told of every failure;
    of_a_command: how many mutants each command gets.
    """
    outcomes = Counter()
    worker = Worker()
    right = worker.decode(bundle)["tokens"]
    jobs = [(None, index) for index in range(count)]
    jobs += [(verb, f"{verb} {index}") for verb in ASKED for index in range(of_a_command)]
    with tempfile.TemporaryDirectory() as folder:
        for verb, name in jobs:
            target = Path(folder) / "bundle"
            shutil.copytree(bundle, target)
            # a command's first one is the bundle itself
            whole = name == f"{verb} 0"
            mutant = (
                Mutant("", "nothing", False) if whole else mutate(target, random.Random(f"{seed} {name}"))
            )
            good, outcome = judge(worker.decode(target, verb), mutant, right)
            outcomes[f"firp {verb}" if verb else mutant.file, outcome if good else "failures"] += 1
            if not good:
                report(f"{bundle.name}, {seed} {name} {mutant.file}: {mutant.change}: {outcome}")
            shutil.rmtree(target)
    worker.close()
    return outcomes


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--count", default=3000, show_default=True, help="Mutants that are decoded.")
@click.option("--of-a-command", default=10, show_default=True, help="Mutants that each command reads.")
@click.option("--seed", default=1, show_default=True)
def main(bundles, count, of_a_command, seed):
    """What becomes of mutants of BUNDLES."""
    result = Result("fuzz_bundles", "Hostile bundles: what becomes of them")
    failures = []
    for bundle in bundles:
        outcomes = fuzz(bundle, count, seed, lambda line: (failures.append(line), print(line)), of_a_command)
        caption = f"{bundle.name}: {count} mutants decoded, {of_a_command} by each command, seed {seed}"
        table = result.table(caption, "changed file, or command", *OUTCOMES)
        for what in sorted({what for what, _ in outcomes}):
            table.add(what, *(outcomes[what, name] for name in OUTCOMES))
        result.write()
    if failures:
        raise SystemExit(f"failed: {len(failures)} mutants")


if __name__ == "__main__":
    main()
