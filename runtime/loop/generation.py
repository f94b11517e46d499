"""Results of a request: its chunks as they come, the whole of it, and what it cost.

In: the steps of the loop. Out: `Chunk`s, a `Generation`, `Stats`.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from firp.runtime.loop.decode import Step
from firp.runtime.picking.logprobs import TokenLogprob


@dataclass(frozen=True)
class Stats:
    """Costs of one request so far, or of several together (`Stats.total`). The prefill emits the
    first token and is not counted in the decoding figures.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of them, that a conversation's cache held already
    steps: int = 0  # decoding passes, the prefill not counted
    drafted_steps: int = 0  # of them, that verified drafts; the others were plain, or had none
    decoded_tokens: int = 0  # emitted by those steps, with what the last one emitted past a stop string
    # drafter -> [d]: steps that accepted a draft of its at depth d + 1
    accepted_by_drafter: dict[str, list[int]] = field(default_factory=dict)
    prefill_ms: float = 0.0
    graph_ms: dict[str, float] = field(default_factory=dict)  # in each graph, of decoding steps only
    outside_ms: float = 0.0  # in the loop itself, outside the graphs, of decoding steps only

    @property
    def accepted_by_depth(self) -> list[int]:
        """[d]: steps that accepted at least d + 1 drafts."""
        return functools.reduce(_sum_by_place, self.accepted_by_drafter.values(), [])

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted for each decoding pass; plain decoding has 1."""
        return self.decoded_tokens / self.steps if self.steps else 1.0

    @property
    def decode_ms(self) -> float:
        """Milliseconds of all decoding steps."""
        return sum(self.graph_ms.values()) + self.outside_ms

    @property
    def ms_per_step(self) -> float:
        """Milliseconds of a decoding step; 0 before the first."""
        return self.decode_ms / self.steps if self.steps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of decoding, the prefill not counted."""
        return self.decoded_tokens / self.decode_ms * 1e3 if self.decode_ms else 0.0

    def after(self, step: Step) -> "Stats":
        """Statistics with one step more."""
        if step.rows == 0:
            return replace(self, prefill_ms=step.times.total_ms, reused_tokens=step.reused_tokens)
        return replace(
            self,
            steps=self.steps + 1,
            drafted_steps=self.drafted_steps + (step.rows > 1),
            decoded_tokens=self.decoded_tokens + len(step.tokens),
            accepted_by_drafter=_sum_by_drafter(self.accepted_by_drafter, _places(step.accepted)),
            graph_ms=_sum_by_name(self.graph_ms, step.times.graph_ms),
            outside_ms=self.outside_ms + step.times.outside_ms,
        )

    @staticmethod
    def total(parts: "Iterable[Stats]") -> "Stats":
        """Several requests together."""
        total = Stats()
        for part in parts:
            total = Stats(
                prompt_tokens=total.prompt_tokens + part.prompt_tokens,
                reused_tokens=total.reused_tokens + part.reused_tokens,
                steps=total.steps + part.steps,
                drafted_steps=total.drafted_steps + part.drafted_steps,
                decoded_tokens=total.decoded_tokens + part.decoded_tokens,
                accepted_by_drafter=_sum_by_drafter(total.accepted_by_drafter, part.accepted_by_drafter),
                prefill_ms=total.prefill_ms + part.prefill_ms,
                graph_ms=_sum_by_name(total.graph_ms, part.graph_ms),
                outside_ms=total.outside_ms + part.outside_ms,
            )
        return total


class Chunk(NamedTuple):
    """An addition of one step to a stream."""

    token_ids: list[int]  # [] in the closing chunk
    text: str | None  # released by these tokens, may lag behind them; None when the bundle has no tokenizer
    finish_reason: str | None  # set in the closing chunk: "stop", "length" or "cancelled"
    stats: Stats  # of the request so far
    logprobs: list[TokenLogprob] | None = None  # of the tokens, where they were asked for
    prompt_logprobs: list[TokenLogprob | None] | None = None  # of the prompt's, likewise; in the first chunk


@dataclass(frozen=True)
class Generation:
    """One finished request."""

    prompt_tokens: int
    token_ids: list[int]  # an end-of-sequence token included
    text: str | None  # None when the bundle has no tokenizer
    # "stop": end-of-sequence token or stop string; "length": token or context limit; "cancelled"
    finish_reason: str
    stats: Stats
    logprobs: list[TokenLogprob] | None = None  # of the tokens, where they were asked for
    prompt_logprobs: list[TokenLogprob | None] | None = None  # of the prompt's: None for the first


def collect(chunks: Iterable[Chunk], show: Callable[[Chunk], None] = lambda chunk: None) -> Generation:
    """A whole stream as one result; each chunk is shown as it comes."""
    token_ids: list[int] = []
    text = ""
    logprobs = prompt_logprobs = None
    for chunk in chunks:
        show(chunk)
        token_ids += chunk.token_ids
        text += chunk.text or ""
        if chunk.logprobs is not None:
            logprobs = [*(logprobs or ()), *chunk.logprobs]
        prompt_logprobs = prompt_logprobs or chunk.prompt_logprobs
    whole = None if chunk.text is None else text
    return Generation(
        *(chunk.stats.prompt_tokens, token_ids, whole, chunk.finish_reason, chunk.stats),
        *(logprobs, prompt_logprobs),
    )


def _sum_by_place(left: list[int], right: list[int]) -> list[int]:
    """Element by element, the shorter list filled up with zeros."""
    size = max(len(left), len(right))
    padded = [values + [0] * (size - len(values)) for values in (left, right)]
    return [sum(pair) for pair in zip(*padded, strict=True)]


def _places(drafters: list[str]) -> dict[str, list[int]]:
    """Drafts of one path by drafter and depth."""
    return {name: [int(one == name) for one in drafters] for name in drafters}


def _sum_by_drafter(left: dict[str, list[int]], right: dict[str, list[int]]) -> dict[str, list[int]]:
    return {name: _sum_by_place(left.get(name, []), right.get(name, [])) for name in left | right}


def _sum_by_name(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in left | right}
