"""What one step of the engine did, as it happens.

In: passes and what they emitted. Out: the step's report.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from firp.runtime.observer import Draft, StepReport
from firp.runtime.passes.batch import COPIES
from firp.runtime.passes.pass_plan import PassPlan


class StepCounts:
    """Counts of one step."""

    def __init__(self):
        self.rows = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.accepted: Counter[Draft] = Counter()
        self.drafted: Counter[Draft] = Counter()
        self.graph_ms: Counter[str] = Counter()

    def add_times(self, pass_ms: Mapping[str, float]) -> None:
        """Add the times of a pass, by graph."""
        self.graph_ms.update({name: ms for name, ms in pass_ms.items() if name != COPIES})

    def count(self, plan: PassPlan, tokens: int, accepted: Sequence[str]) -> None:
        """Add what one sequence got of a pass. accepted: drafters of its drafts, by depth."""
        self.tokens += tokens
        if not plan.prompt:
            tree = plan.tree
            self.rows = max(self.rows, len(tree.tokens))
            self.drafted.update(set(map(Draft, tree.drafters[1:], tree.depths[1:])))
            self.accepted.update(map(Draft, accepted, range(1, 1 + len(accepted))))

    def report(
        self, batch: int, total_ms: float, active: int, waiting: int, cache_bytes: int
    ) -> StepReport | None:
        """The step as an observer is told of it; None where it did nothing."""
        if not (self.tokens or self.prompt_tokens):
            return None
        return StepReport(
            *(batch, self.rows, self.tokens, self.prompt_tokens, self.accepted, self.drafted),
            *(self.graph_ms, total_ms, active, waiting, cache_bytes),
        )
