"""The trees of passes that are timed.

In: a `monkeypatch`. Out: their tokens, as passes are made.
"""

from typing import Any

from firp.runtime.passes.batch import Batch


def recorded_tokens(monkeypatch: Any) -> list[tuple[int, ...]]:
    """Of every tree whose logits nobody asked for."""
    found: list[tuple[int, ...]] = []
    forward = Batch.forward

    def record(batch: Batch, lanes: range, plans: Any) -> Any:
        found.extend(tuple(plan.tree.tokens) for plan in plans if not plan.bring_logits)
        return forward(batch, lanes, plans)

    monkeypatch.setattr(Batch, "forward", record)
    return found


def assert_rows_differ(trees: list[tuple[int, ...]]) -> None:
    """Rows have tokens of their own, and so have passes: the same rows would choose the same experts."""
    several = [tokens for tokens in trees if len(tokens) >= 4]
    assert len(several) > 8
    assert min(len(set(tokens)) for tokens in several) > 2
    assert len(set(several)) > len(several) / 4  # each context begins anew
