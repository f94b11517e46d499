"""Text that the model writes itself: drafts must match what it writes, not what people wrote.

In: a Hugging Face model and prompts. Out: sequences of prompt and continuation, decoded in batches of prompts of equal length.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from firp.calib.acceptance import Sequence

BATCH = 16
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
) -> list[Sequence]:
    """Continue each prompt by up to `new_tokens` tokens; an end-of-sequence token is kept and closes it. temperature 0: greedy."""
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    written: list[Sequence | None] = [None] * len(prompts)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for indices in by_length.values():
            for start in range(0, len(indices), BATCH):
                chosen = indices[start : start + BATCH]
                ids = torch.tensor([prompts[i] for i in chosen], device=model.device)
                out = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, eos_token_id=list(ends) or None,
                    pad_token_id=ends[0] if ends else 0, **sampling,
                )  # fmt: skip
                for i, row in zip(chosen, out.cpu().numpy(), strict=True):
                    written[i] = _closed(row, len(prompts[i]), ends)
                progress(sum(each is not None for each in written), len(prompts))
    return written


def _closed(row: np.ndarray, prompt_tokens: int, ends: tuple[int, ...]) -> Sequence:
    """Without the padding that follows an end of sequence."""
    stops = np.flatnonzero(np.isin(row[prompt_tokens:], ends))
    return Sequence(row[: prompt_tokens + stops[0] + 1] if len(stops) else row, prompt_tokens)
