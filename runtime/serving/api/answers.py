"""Answers as OpenAI's clients read them.

In: results of the engine. Out: JSON objects: completions, their chunks, usage.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from firp.runtime.loop.generation import Stats


@dataclass
class Usage:
    """Tokens that a request took. prompt: of all its prompts, each counted once."""

    prompt: int
    cached: int = 0
    completion: int = 0
    accepted: int = 0

    def add(self, tokens: int, stats: Stats) -> None:
        """Count one sample that is finished."""
        self.completion += tokens
        self.cached = max(self.cached, stats.reused_tokens)
        self.accepted += sum(stats.accepted_by_depth)

    @property
    def json(self) -> dict[str, Any]:
        """The object "usage"; accepted drafts are among its completion tokens."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"accepted_prediction_tokens": self.accepted},
        }


@dataclass(frozen=True)
class Envelope:
    """What all objects of one answer have in common."""

    kind: str  # "chat.completion" or "text_completion"
    id: str
    created: int  # seconds of Unix time
    model: str
    fingerprint: str
    with_usage: bool = False  # whether chunks have a field "usage"

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage, **more: Any) -> dict[str, Any]:
        """An answer in one piece."""
        return {**self._head(self.kind), "choices": list(choices), "usage": usage.json, **more}

    def chunk(self, choices: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A piece of a stream."""
        kind = self.kind if self.kind == "text_completion" else f"{self.kind}.chunk"
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head(kind), "choices": list(choices), **usage, **more}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def call_delta(
    index: int, arguments: str, name: str | None = None, call_id: str | None = None
) -> dict[str, Any]:
    """A part of a call of a function; the first has its name and an id, the others arguments alone."""
    if name is None:
        return {"index": index, "function": {"arguments": arguments}}
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def whole_calls(deltas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that parts of them make."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if "id" in delta:
            calls.append({name: value for name, value in delta.items() if name != "index"})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls
