"""firp beside what users would pick instead, on one model: the same prompts, threads and lengths,
taking turns, every process warm and only one of them at work.

    python benchmarks/peers.py --model DIR --gguf FILE --prompts FILE.jsonl \\
        --bundle float32=BUNDLE --bundle int8=BUNDLE [--threads 2] [--turns 3]
    python benchmarks/peers.py --synthetic 1.1B

The peers are installed into environments of their own below --work, llama.cpp compiled for this
processor, and the model is brought into their formats; both happen once. What cannot be installed or
does not take the model is named, and left out. A bundle is decoded plainly and, if it has a tree,
with the tree that `firp tune` chose, under its guard. A prompt's "id" begins with its kind, as in
"summary:12".

Lines of what was measured are kept in WORK/NAME/lines.jsonl, so that a run that was stopped goes on,
and more turns or bundles can be added; the tables in results/NAME.md are of all lines there. Delete
them to measure again.

A synthetic model has random weights, and no drafts: its latency is that of a trained one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
import peer_install as install
import peer_jobs
from memory_speed import bytes_of_a_token, keep_read_speed
from peer_install import Peer, Workshop
from peer_process import another_job
from peer_table import report
from peer_turns import Comparison, Lines
from random_formats import make_gguf, make_tokenizer
from random_model import SHAPES, make_checkpoint
from table import Result

from firp.runtime.machine import cores, processor

PEERS = ("firp", "transformers", "onnxruntime-genai", "llama.cpp", "OpenVINO")
SYNTHETIC = {"tiny": "tiny", "0.5B": "0.5b", "1.1B": "1b"}  # names in SHAPES; tiny: to try the peers
QUANTIZE = {"float32": None, "int8": "int8", "int4": "int4"}
ASIDE = (
    "A peer decodes with its own defaults: llama.cpp keeps its cache in float16, OpenVINO in 8 bits. "
    "llama.cpp quantized Q8_0 and Q4_0 from the values of the GGUF file, the others from the checkpoint."
)
PATH = click.Path(path_type=Path, exists=True)
Made = tuple[str, Callable[[], Peer]]  # a peer's label, and what makes it


@click.command()
@click.option("--model", type=PATH, help="Hugging Face directory.")
@click.option("--gguf", type=PATH, help="The same model as a GGUF file, for llama.cpp.")
@click.option("--prompts", type=PATH, help="Prompt file.")
@click.option("--bundle", "bundles", multiple=True, metavar="LABEL=BUNDLE", help="The same model, exported.")
@click.option("--synthetic", type=click.Choice(SYNTHETIC), help="A model of random weights instead.")
@click.option("--peer", "peers", type=click.Choice(PEERS), multiple=True, help="Only this one; repeatable.")
@click.option("--threads", default=cores(), show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Generated after each prompt.")
@click.option("--per-kind", default=1, show_default=True, help="Prompts of each kind.")
@click.option("--text", type=PATH, help="Held-out text for the perplexity. Default: the prompts' own.")
@click.option("--busy", is_flag=True, help="Beside another job, which computes on one core without end.")
@install.work_option
@click.option("--name", help="Of the files. Default: peers, or peers_SIZE.")
def main(
    model, gguf, prompts, bundles, synthetic, peers, threads, turns, tokens, per_kind, text, busy, work, name
):  # fmt: skip
    if synthetic is None and not (model and prompts):
        raise click.UsageError("give --model and --prompts, or --synthetic")
    if synthetic is not None and (model or gguf or prompts or bundles or text):
        raise click.UsageError("--synthetic goes without a model, prompts and bundles")
    if any("=" not in bundle for bundle in bundles):
        raise click.UsageError("a --bundle is LABEL=BUNDLE")
    name = name or ("peers" if synthetic is None else f"peers_{synthetic.lower()}")
    shop = Workshop(work.resolve(), name, threads)
    peers = peers or PEERS
    if synthetic is None:
        jobs = peer_jobs.of_prompts(model, prompts, per_kind, text, tokens)
        given = dict(bundle.split("=", 1) for bundle in bundles)
        made = real(shop, model, gguf, {label: Path(path).resolve() for label, path in given.items()}, jobs)
    else:
        jobs = peer_jobs.of_noise(SHAPES[SYNTHETIC[synthetic]]["vocab_size"], tokens)
        made = random(shop, SYNTHETIC[synthetic], jobs)
    settings = {"model": str(model or synthetic), "prompts": str(prompts), "text": str(text)}
    settings |= {"tokens": tokens, "threads": threads, "machine": processor()}
    settings |= {"busy": busy}
    comparison = Comparison(Lines(shop.folder / "lines.jsonl", settings), jobs, shop.folder / "workers.log")
    for label, make in made:
        if label.partition(" ")[0] in peers:
            comparison.admit(label, make)
    with another_job() if busy else nullcontext():
        keep_read_speed(comparison.lines, threads, 0)
        idle_s = comparison.run(turns)
        keep_read_speed(comparison.lines, threads, 1)
    beside = ", another job on one core" if busy else ""
    result = Result(name, f"Peers: {Path(settings['model']).name}, {threads} threads{beside}")
    weights = {
        peer.label: bytes_of_a_token(Path(peer.options["model"]))
        for peer in comparison.peers
        if peer.label.startswith("firp ")
    }
    report(result, comparison.lines.all, weights)
    result.note(ASIDE)
    for label, why in comparison.absent.items():
        result.note(f"{label} is left out: {why}")
    result.note(f"Workers that waited for their turn took {idle_s:.2f} s of processor time in all.")
    result.write()


def real(
    shop: Workshop, model: Path, gguf: Path | None, bundles: Mapping[str, Path], jobs: peer_jobs.Jobs
) -> Iterator[Made]:
    """Peers of a model that was given. bundles: by label."""
    for label, bundle in bundles.items():
        yield f"firp {label}", partial(install.firp, shop, label, bundle)
    yield from others(shop, model)
    if gguf:
        for kind in (None, *install.GGUF_TYPES):
            yield f"llama.cpp {kind or 'file'}", partial(install.llama_cpp, shop, gguf, kind, jobs.longest)


def random(shop: Workshop, shape: str, jobs: peer_jobs.Jobs) -> Iterator[Made]:
    """Peers of a model with random weights, of a shape in SHAPES."""

    def make(folder: Path) -> None:
        make_checkpoint(folder, SHAPES[shape], "float32")
        make_tokenizer(folder, SHAPES[shape]["vocab_size"])

    model = shop.made("model", make)
    for label, quantize in QUANTIZE.items():
        yield f"firp {label}", partial(firp_of, shop, label, model, quantize)
    yield from others(shop, model)
    for kind in (None, *install.GGUF_TYPES):
        yield f"llama.cpp {kind or 'file'}", partial(llama_cpp_of, shop, model, kind, jobs.longest)


def others(shop: Workshop, model: Path) -> Iterator[Made]:
    """Peers that read a Hugging Face directory."""
    yield "transformers float32", partial(install.transformers, shop, model)
    for precision in install.GENAI:
        yield f"onnxruntime-genai {precision}", partial(install.genai, shop, model, precision)
    for precision in install.OPENVINO:
        yield f"OpenVINO {precision}", partial(install.openvino, shop, model, precision)


def firp_of(shop: Workshop, label: str, model: Path, quantize: str | None) -> Peer:
    """firp, with the bundle that it exports."""
    return install.firp(shop, label, install.exported(shop, model, quantize))


def llama_cpp_of(shop: Workshop, model: Path, kind: str | None, context: int) -> Peer:
    """llama.cpp, with the GGUF file that is made of a checkpoint. Raises Absent."""
    gguf = shop.made("float32.gguf", lambda path: make_gguf(path, model))
    return install.llama_cpp(shop, gguf, kind, context)


if __name__ == "__main__":
    main()
