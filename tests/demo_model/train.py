"""Train the demo model: a small Llama on Python source text that any machine has.

In: the standard library's own sources, plus packages named with --package that are installed beside
this interpreter. Out: a Hugging Face model directory (config, bfloat16 safetensors, tokenizer) and
training.json, the record of the run.

Whole packages are held out (HELD_OUT): none of their files is ever trained on, and the prompts used
by benchmarks/ are cut from them. With --init the run continues a checkpoint and its tokenizer;
without, both start from nothing.
"""

import json
import math
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HELD_OUT = ("rich", "click", "_pytest", "pluggy", "markdown_it", "setuptools")
SEQUENCE_TOKENS = 512


def source_files(packages: tuple[str, ...]) -> list[Path]:
    """Python files of the standard library and of the installed packages, held-out packages
    excluded, in a fixed order.
    """
    stdlib, site = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    roots = [path for path in stdlib.iterdir() if path.name not in ("site-packages", "lib2to3", "idlelib")]
    roots += [site / name for name in packages if name not in HELD_OUT]
    files = [file for root in roots for file in ([root] if root.suffix == ".py" else root.rglob("*.py"))]
    return sorted(file for file in set(files) if file.stat().st_size > 200)


def held_out_files() -> list[Path]:
    site = Path(sysconfig.get_path("purelib"))
    return sorted(
        file for name in HELD_OUT for file in (site / name).rglob("*.py") if "_vendor" not in file.parts
    )


def read(files: list[Path]) -> list[str]:
    return [file.read_text("utf-8", errors="ignore") for file in files]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; token 0 is <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
        ),
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one array of ids, each text closed by token 0."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return np.concatenate([np.array([*item.ids, 0], np.uint16) for item in encoded])


def new_model(vocab_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, stream: np.ndarray, windows: int = 64) -> float:
    """Mean next-token loss in nats over evenly spaced windows."""
    starts = np.linspace(0, len(stream) - SEQUENCE_TOKENS - 1, windows).astype(int)
    losses = []
    for start in starts:
        ids = torch.from_numpy(stream[start : start + SEQUENCE_TOKENS].astype(np.int64))[None]
        losses.append(model(ids, labels=ids).loss.item())
    return float(np.mean(losses))


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Continue this model directory.")
@click.option("--package", "packages", multiple=True, help="Also train on this installed package.")
@click.option("--minutes", default=90.0, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--vocab-size", default=4096, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(out, init, packages, minutes, batch, learning_rate, vocab_size, threads, seed):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    generator = np.random.default_rng(seed)
    files, held_out = source_files(packages), held_out_files()
    texts = read(files)
    tokenizer = (
        Tokenizer.from_file(str(init / "tokenizer.json")) if init else train_tokenizer(texts, vocab_size)
    )
    stream, held_out_stream = token_stream(tokenizer, texts), token_stream(tokenizer, read(held_out))
    model = (
        AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
        if init
        else new_model(tokenizer.get_vocab_size())
    )
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        betas=(0.9, 0.95),
    )
    curve = [{"tokens": 0, "minutes": 0.0, "train": None, "held_out": mean_loss(model, held_out_stream)}]
    print(
        f"{len(files)} files, {len(stream)} tokens; held out {len(held_out_stream)} tokens, "
        f"loss {curve[0]['held_out']:.3f}",
        flush=True,
    )
    started, last_report, recent, step = time.monotonic(), time.monotonic(), [], 0
    order = generator.permutation(len(stream) // SEQUENCE_TOKENS)
    while (elapsed := time.monotonic() - started) < minutes * 60:
        progress = elapsed / (minutes * 60)
        rate = learning_rate * min(1.0, progress / 0.02) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        window = [order[(step * batch + i) % len(order)] * SEQUENCE_TOKENS for i in range(batch)]
        jitter = generator.integers(0, SEQUENCE_TOKENS)
        starts = [min(start + jitter, len(stream) - SEQUENCE_TOKENS) for start in window]
        ids = torch.from_numpy(np.stack([stream[s : s + SEQUENCE_TOKENS] for s in starts]).astype(np.int64))
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        recent.append(loss.item())
        if time.monotonic() - last_report > 120:
            last_report = time.monotonic()
            point = {
                "tokens": step * batch * SEQUENCE_TOKENS,
                "minutes": round((time.monotonic() - started) / 60, 1),
                "train": float(np.mean(recent)),
                "held_out": mean_loss(model, held_out_stream),
            }
            curve.append(point)
            recent.clear()
            print(json.dumps(point), flush=True)
    curve.append(
        {
            "tokens": step * batch * SEQUENCE_TOKENS,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "train": float(np.mean(recent)) if recent else None,
            "held_out": mean_loss(model, held_out_stream),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    if init:
        for name in ("tokenizer_config.json", "generation_config.json"):
            shutil.copyfile(init / name, out / name)
    record = {
        "initialized_from": init.name if init else None,
        "texts": ["python standard library", *packages],
        "held_out_packages": list(HELD_OUT),
        "files": len(files),
        "tokens_in_corpus": len(stream),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sequence_tokens": SEQUENCE_TOKENS,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
        "threads": threads,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "curve": curve,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(curve[-1]), flush=True)


if __name__ == "__main__":
    main()
