"""Text that the model writes itself: drafts must match what it writes, not what people wrote.

In: a Hugging Face model and prompts. Out: sequences of prompt and continuation, decoded in batches
of prompts of similar length: 32 sequences a pass are many times the tokens per second of one
sequence, whatever decodes it.
"""

import functools
from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from firp.calib.text.sequence import TokenSequence

BATCH = 32
SAMPLING_TEMPERATURE = 0.8


@torch.no_grad()
def continue_prompts(
    model: nn.Module,
    prompts: list[list[int]],
    new_tokens: int,
    temperature: float,
    seed: int,
    ends: tuple[int, ...],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[TokenSequence]:
    """Continue each prompt by up to `new_tokens` tokens; an end-of-sequence token is kept and
    closes it. temperature 0: greedy.
    """
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
        for start in range(0, len(by_length), BATCH):
            chosen = by_length[start : start + BATCH]
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
    model: nn.Module,
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
        written += continue_prompts(model, chosen, new_tokens, temperature, seed, ends, report)
    return [text.tokens.tolist() for text in written]


def _closed(row: np.ndarray, prompt_tokens: int, ends: tuple[int, ...]) -> TokenSequence:
    """A row without the padding that follows an end of sequence."""
    stops = np.flatnonzero(np.isin(row[prompt_tokens:], ends))
    return TokenSequence(row[: prompt_tokens + stops[0] + 1] if len(stops) else row, prompt_tokens)
