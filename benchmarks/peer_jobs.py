"""What the peers of `peers.py` are asked: token ids, the same for all of them.

In: a model's tokenizer and prompts, or the size of a vocabulary. Out: `Job`s.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.loop.text import encode_text, load_tokenizer
from firp.runtime.prompts import Prompt, read_prompts

PLACES = {128: (104, 48), 512: (500, 24), 2048: (2000, 96)}  # context in the middle: prompt, new tokens
CONTEXT = max(prompt + tokens for prompt, tokens in PLACES.values())
SCORED_TOKENS = 1024


class Job(NamedTuple):
    """A prompt. id: of a prompt, as in "summary:12", or the context that it is about."""

    id: str
    ids: list[int]
    tokens: int  # to generate


class Jobs:
    """prompts: [(id, token ids)] of real prompts, decoded for `tokens` tokens; stream: token ids of
    a long text, in which contexts are cut; scored: token ids whose likelihood is told, or none.
    """

    def __init__(
        self, prompts: list[tuple[str, list[int]]], stream: list[int], scored: list[int], tokens: int
    ):
        self.prompts = [Job(name, ids, tokens) for name, ids in prompts]
        self.scored = scored
        self._stream, self._tokens = stream, tokens

    def contexts(self, turn: int) -> list[Job]:
        """Contexts of the sizes in PLACES, with other text in every turn; the last of a generation's
        tokens is as far behind the size as the first is before it."""
        jobs = []
        for size, (prompt, tokens) in PLACES.items():
            rolled = np.roll(self._stream, -turn * max(PLACES))
            ids = np.resize(rolled, prompt).tolist()
            jobs.append(Job(str(size), ids, min(tokens, self._tokens)))
        return jobs

    @property
    def longest(self) -> int:
        """Tokens of the longest job, prompt and all."""
        return max([CONTEXT, *(len(job.ids) + job.tokens for job in self.prompts)])


def of_prompts(model: Path, prompts: Path, per_kind: int, text: Path | None, tokens: int) -> Jobs:
    """Jobs of a prompt file, `per_kind` prompts of every kind (what an id begins with, before the
    colon). text: a file whose likelihood is told; None: the prompts' own text.
    """
    known = read_prompts(prompts)
    encode = encoder(model, known)
    chosen = [prompt for some in of_each_kind(known, per_kind).values() for prompt in some]
    rest = [prompt for prompt in known if prompt not in chosen] or known
    stream = [token for prompt in rest for token in encode(prompt)]
    scored = (
        encode(Prompt("text", text.read_text("utf-8")))[:SCORED_TOKENS] if text else stream[:SCORED_TOKENS]
    )
    return Jobs([(prompt.id, encode(prompt)) for prompt in chosen], stream, scored, tokens)


def of_each_kind(prompts: Sequence[Prompt], count: int) -> dict[str, list[Prompt]]:
    """The first prompts of every kind, which is what an id begins with, before the colon."""
    kinds = defaultdict(list)
    for prompt in prompts:
        kinds[prompt.id.partition(":")[0]].append(prompt)
    return {kind: some[:count] for kind, some in kinds.items()}


def encoder(model: Path, prompts: Sequence[Prompt]) -> Callable[[Prompt], list[int]]:
    """What turns these prompts into token ids. model: a folder with a tokenizer and, for messages, a
    chat template: a Hugging Face directory or a bundle.
    """
    tokenizer = load_tokenizer(model / "tokenizer.json")
    files = {path.name: path for path in model.iterdir() if path.is_file()}
    chat = None
    if any(prompt.messages for prompt in prompts):
        chat = ChatEncoder.from_files(
            lambda name: files[name].read_bytes() if name in files else None, tokenizer
        )

    def encode(prompt: Prompt) -> list[int]:
        if prompt.messages:
            return chat.encode(prompt.messages)
        return prompt.input_ids or encode_text(tokenizer, prompt.text)

    return encode


def of_noise(vocab_size: int, tokens: int) -> Jobs:
    """Jobs of random tokens, for models of random weights."""
    stream = noise(vocab_size, 8 * CONTEXT)
    return Jobs([("noise:1", stream[:300])], stream, [], tokens)


def noise(vocab_size: int, tokens: int) -> list[int]:
    """Random token ids, none of those that mean something."""
    return np.random.default_rng(0).integers(3, vocab_size, tokens).tolist()
