"""Text that the model writes itself: drafts must match what it writes, not what people wrote.

In: a model and prompts. Out: sequences of prompt and continuation. On a CPU the runtime writes them,
many requests together; on a GPU transformers does, in batches of prompts of similar length.
"""

import functools
import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from firp.calib.text.sequence import TokenSequence
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.service import EngineOptions

GPU_BATCH = 32  # sequences that transformers continues together
CPU_BATCH = 16  # requests that the runtime decodes together: more give no more tokens a second
SAMPLING_TEMPERATURE = 0.8

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


class Beginnings(NamedTuple):
    """What a model is to continue, and how."""

    prompts: list[list[int]]
    new_tokens: int  # at most, of each
    temperature: float  # 0: greedy
    seed: int
    ends: tuple[int, ...]  # tokens that end a text, of which they are a part


class Writer(Protocol):
    """Continues prompts of one model."""

    def __call__(self, asked: Beginnings, progress: Progress = _silent) -> list[TokenSequence]:
        """Every prompt with what the model writes after it."""


def writer_for(path: Path, model: nn.Module) -> Writer:
    """The fastest writer where the model lies. path: that it was read from."""
    return TransformersWriter(model) if model.device.type == "cuda" else RuntimeWriter(path)


class RuntimeWriter:
    """The runtime, plain and in float32, on a bundle that is written for it, in the folder for
    temporary files, when it is first asked, and is gone with it. Drafts are left out: in a batch of so
    many their rows cost more than they save.
    """

    def __init__(self, path: Path):
        self._path = path
        self._scratch: tempfile.TemporaryDirectory | None = None

    def _bundle(self) -> Path:
        if self._scratch is None:
            scratch = tempfile.TemporaryDirectory()
            export_bundle(ExportOptions(self._path, Path(scratch.name) / "bundle"))
            self._scratch = scratch
        return Path(self._scratch.name) / "bundle"

    def __call__(self, asked: Beginnings, progress: Progress = _silent) -> list[TokenSequence]:
        prompts, new_tokens, temperature, seed, ends = asked
        together = EngineOptions(max_batch=CPU_BATCH, max_queue=len(prompts), prefix_bytes=0)
        written = []
        with Engine.load(self._bundle(), check_hashes=False, options=together) as engine:
            handles = [
                engine.submit(
                    prompt,
                    SamplingParams(new_tokens, temperature=temperature, seed=at, stop_token_ids=ends),
                    plain=True,
                )
                for at, prompt in enumerate(prompts, seed * len(prompts))
            ]
            for prompt, handle in zip(prompts, handles, strict=True):
                tokens = np.array(prompt + handle.result().token_ids, np.int64)
                written.append(TokenSequence(tokens, len(prompt)))
                progress(len(written), len(prompts))
        return written


class TransformersWriter:
    """transformers' `generate`: 32 sequences a pass are many times the tokens per second of one."""

    def __init__(self, model: nn.Module):
        self._model = model

    @torch.no_grad()
    def __call__(self, asked: Beginnings, progress: Progress = _silent) -> list[TokenSequence]:
        prompts, new_tokens, temperature, seed, ends = asked
        model = self._model
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        # its own defaults (penalties, top-k) are not what the runtime decodes with
        model.generation_config = GenerationConfig()
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        written: list[TokenSequence | None] = [None] * len(prompts)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for start in range(0, len(by_length), GPU_BATCH):
                chosen = by_length[start : start + GPU_BATCH]
                longest = len(prompts[chosen[-1]])
                padding = [longest - len(prompts[i]) for i in chosen]
                rows = [[0] * pad + prompts[i] for pad, i in zip(padding, chosen, strict=True)]
                mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
                out = model.generate(
                    torch.tensor(rows, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    max_new_tokens=new_tokens,
                    eos_token_id=list(ends) or None,
                    pad_token_id=ends[0] if ends else 0,
                    **sampling,
                )
                for i, pad, row in zip(chosen, padding, out.cpu().numpy(), strict=True):
                    written[i] = _closed(row[pad:], len(prompts[i]), ends)
                progress(sum(text is not None for text in written), len(prompts))
        return written


def write_text(
    write: Writer,
    prompts: list[list[int]],
    window: int,
    tokens: int,
    seed: int,
    ends: tuple[int, ...],
    progress: Callable,
) -> list[list[int]]:
    """About so many tokens of continuations, up to half of them greedy, the others sampled. Prompts
    take turns; their last tokens are kept.
    """
    kept = [ids[-(window // 2) :] for ids in prompts]
    new_tokens = window - window // 2
    count = max(2, tokens // new_tokens)
    greedy = kept[: count // 2]
    sampled = list(islice(cycle(kept), count - len(greedy)))
    written = []
    for chosen, temperature in ((greedy, 0.0), (sampled, SAMPLING_TEMPERATURE)):
        report = functools.partial(progress, f"writing text with the model, temperature {temperature:g}")
        written += write(Beginnings(chosen, new_tokens, temperature, seed, ends), report)
    return [text.tokens.tolist() for text in written]


def _closed(row: np.ndarray, prompt_tokens: int, ends: tuple[int, ...]) -> TokenSequence:
    """A row without the padding that follows an end of sequence."""
    stops = np.flatnonzero(np.isin(row[prompt_tokens:], ends))
    return TokenSequence(row[: prompt_tokens + stops[0] + 1] if len(stops) else row, prompt_tokens)
