"""How fast models of very different families are decoded, plainly: random weights in the shapes of real
ones, scaled to half a billion parameters or a whole one, beside onnxruntime-genai and transformers; and
Llamas beside llama.cpp, with what more rows in a pass cost.

    python benchmarks/family_speed.py --prepare [--model NAME]... [--precision P]... [--work DIR]
    python benchmarks/family_speed.py [--model NAME]... [--precision P]... [--work DIR] [--turns 4]

--prepare writes and exports all models, which takes long and measures nothing. Then, or without it one
model at a time: all peers take turns on one prompt, with as many threads, and its files are deleted. A run
that was stopped goes on; results/family_speed.md and .json are of all that was measured below DIR. Delete
DIR/family-NAME to measure one again.

Vocabularies are 32,000 tokens, so that layers are what is timed. The peers are those of `peers.py`.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import peer_install as install
from family_table import report
from memory_speed import bytes_of_a_token, keep_read_speed
from peer_install import Absent, Peer, Workshop
from peer_jobs import Job, noise
from peer_process import Worker
from peer_turns import Comparison, Lines
from random_formats import make_gguf, make_small_experts, make_tokenizer
from random_model import SHAPES, make_checkpoint
from table import RESULTS, Result, this_run

from firp.runtime.machine import cores, processor

CONTEXT, TOKENS = 128, 32
ROWS = (1, 2, 4, 8, 16)
PRECISIONS = ("float32", "int8", "int4")
_COMMON = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma 3": {  # 1B with 18 of its 26 layers
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            # the same once more where onnxruntime-genai's builder looks; transformers passes it over
            "rope_type": "default",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    },
    "Phi-4": {
        "model_type": "phi3",
        "hidden_size": 1536,
        "intermediate_size": 5376,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "num_key_value_heads": 3,
    },
    "OLMo 2": {  # 1B with 6 of its 16 layers
        "model_type": "olmo2",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "Command-R": {
        "model_type": "cohere",
        "hidden_size": 1536,
        "intermediate_size": 4224,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "tie_word_embeddings": True,
    },
    "Qwen3-MoE": {
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 9,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "hidden_size": 1024,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 24,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
    },
}
LLAMAS = {"Llama 0.5B": "0.5b", "Llama 1.1B": "1b"}  # names in SHAPES
TINY = {  # to try the script
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "vocab_size": 1024,  # rows of no other matrix: onnxruntime-genai's builder knows the head by them
}


class Shape(NamedTuple):
    """A model to time."""

    name: str
    config: dict[str, Any]
    llama: bool  # of which there are more peers, and passes of several rows


def shapes(tiny: bool) -> dict[str, Shape]:
    """All models, by name."""
    found = {name: Shape(name, _COMMON | config, False) for name, config in FAMILIES.items()}
    found |= {name: Shape(name, _COMMON | SHAPES[key], True) for name, key in LLAMAS.items()}
    if not tiny:
        return found
    return {
        name: shape._replace(
            config={
                key: TINY.get(key, value) if key != "head_dim" else 32 for key, value in shape.config.items()
            }
        )
        for name, shape in found.items()
    }


class OnePrompt:
    """Jobs of one prompt of noise, whose generation has CONTEXT tokens before it in the middle."""

    def __init__(self, vocab_size: int):
        self.prompts = [Job("noise", noise(vocab_size, CONTEXT - TOKENS // 2), TOKENS)]
        self.scored: list[int] = []
        self.longest = CONTEXT + TOKENS + max(ROWS)

    def contexts(self, turn: int) -> list[Job]:
        """None beside the prompt."""
        return []


@click.command()
@click.option(
    "--model", "names", type=click.Choice([*FAMILIES, *LLAMAS]), multiple=True, help="Only this one."
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=PRECISIONS,
    show_default=True,
    help="Of firp and onnxruntime-genai.",
)
@click.option("--prepare", is_flag=True, help="Write and export the models, and measure nothing.")
@click.option("--threads", default=cores(), show_default=True)
@click.option("--turns", default=4, show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny models of these families, to try the script.")
@install.work_option
def main(names, precisions, prepare, threads, turns, tiny, work):
    known = shapes(tiny)
    measured = {}
    for name, shape in known.items():
        folder = f"family-{name.replace(' ', '-')}"
        shop = Workshop(work.resolve(), folder + ("-tiny" if tiny else ""), threads)
        settings = {"config": shape.config, "threads": threads, "machine": processor()}
        lines = Lines(shop.folder / "lines.jsonl", settings)
        if (not names or name in names) and not lines.has(what="done", name=name):
            prepared(shop, shape, lines, precisions)
            if not prepare:
                time_it(shop, shape, lines, turns, precisions)
                for path in shop.folder.iterdir():
                    if path.is_dir() or path.suffix == ".gguf":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                lines.add(what="done", name=name)
        measured[name] = lines.all
    if prepare:
        return
    name = "family_speed_tiny" if tiny else "family_speed"
    result = Result(name, f"Speed of families, plain decoding, {threads} threads")
    found = report(result, measured)
    result.write()
    data = {"run": this_run()._asdict(), "models": found}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def peers(shop: Workshop, shape: Shape, precisions: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Labels, and what makes a peer of what was prepared, or prepares it."""
    model = shop.folder / "model"
    for precision in PRECISIONS if shape.llama else PRECISIONS[:2]:
        if precision not in precisions:
            continue
        quantize = None if precision == "float32" else precision
        yield f"firp {precision}", partial(firp_of, shop, precision, model, quantize)
        yield f"onnxruntime-genai {precision}", partial(install.genai, shop, model, precision)
    if not shape.llama:
        yield "transformers float32", partial(install.transformers, shop, model)
    else:
        longest = OnePrompt(shape.config["vocab_size"]).longest
        for kind in install.GGUF_TYPES:
            yield (
                f"llama.cpp {kind}",
                partial(install.llama_cpp, shop, shop.folder / "float32.gguf", kind, longest),
            )


def firp_of(shop: Workshop, label: str, model: Path, quantize: str | None) -> Peer:
    """firp, with the bundle that it exports. Raises Absent where the export refuses."""
    return install.firp(shop, label, install.exported(shop, model, quantize))


def prepared(shop: Workshop, shape: Shape, lines: Lines, precisions: Sequence[str]) -> None:
    """Write the model, and bring it into all formats; what refuses it is said in a line."""
    done = {"what": "prepared", "name": shape.name, "precisions": sorted(precisions)}
    if lines.has(**done):
        return

    def make(folder: Path) -> None:
        make_checkpoint(folder, shape.config, "float32")
        make_tokenizer(folder, shape.config["vocab_size"])
        if shape.config.get("model_type") == "gpt_oss":
            make_small_experts(folder)

    model = shop.made("model", make)
    if shape.llama:
        shop.made("float32.gguf", lambda path: make_gguf(path, model))
    for label, make_peer in peers(shop, shape, precisions):
        line = {"what": "absent", "name": label}
        if not lines.has(**line):
            try:
                make_peer()
            except Absent as error:
                lines.add(**line, why=str(error))
    if shape.llama:  # else transformers decodes with it
        shutil.rmtree(model)
    shutil.rmtree(shop.folder / "cache", ignore_errors=True)
    (shop.folder / "float32.gguf").unlink(missing_ok=True)
    lines.add(**done)


def time_it(shop: Workshop, shape: Shape, lines: Lines, turns: int, precisions: Sequence[str]) -> None:
    """Let all peers of one model take turns; before and after it memory is read."""
    keep_read_speed(lines, shop.threads, 0)
    jobs = OnePrompt(shape.config["vocab_size"])
    comparison = Comparison(lines, jobs, shop.folder / "workers.log", loads=1, plain=True)
    for label, make in peers(shop, shape, precisions):
        if not lines.has(what="absent", name=label):
            comparison.admit(label, make)
    comparison.run(turns)
    keep_read_speed(lines, shop.threads, 1)
    for label, why in comparison.absent.items():
        lines.add(what="absent", name=label, why=why)
    for peer in comparison.peers:
        if peer.label.startswith("firp") and not lines.has(what="bytes", name=peer.label):
            lines.add(what="bytes", name=peer.label, bytes=bytes_of_a_token(Path(peer.options["model"])))
        line = {"what": "rows", "name": peer.label}
        if shape.llama and not lines.has(**line):
            with (shop.folder / "workers.log").open("ab") as log, Worker(peer, log) as worker:
                ids = jobs.prompts[0].ids
                lines.add(**line, **worker.ask(call="rows", ids=ids, counts=ROWS, turns=turns + 1))


if __name__ == "__main__":
    main()
