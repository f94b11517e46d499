"""The training loop of draft heads and of the path correction, on a frozen model.

In: a frozen model, its real rows of windows of tokens, options. Out: trained heads and tables, and
the loss curve.
Loss of the heads: KL divergence from the model's own next-token distribution at token i + j to that
of guess j of anchor i, summed over j, averaged over anchors (method.md, "Training the predictors");
over a shortlist of tokens where the vocabulary is large.
The tables learn from the same guesses, which they do not change.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import Heads, at
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore
from firp.calib.training.shortlist import make_shortlist
from firp.runtime.errors import FirpError

CURVE_POINTS = 200
# a step, in the first half: of the tables, from the pairs of neighbours in so many windows
PAIR_UPDATES, PAIR_WINDOWS = 8, 4

_TRAINED = ("heads", "tables")
_PARTS = (*_TRAINED, "optimizer", "table_optimizer")
_VALUES = ("order", "step", "seconds", "running", "curve")


class TrainProgress(NamedTuple):
    done: float  # 0 to 1
    step: int
    loss: list[float]  # [K] nats, a running mean for each offset


class Trainer:
    """Everything that changes while heads train; `state` and `restore` let a run stop anywhere and
    go on as if it had not.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        heads: Heads,
        tables: PathTables,
        store: RowStore,
        options: TrainOptions,
    ):
        self.frozen = frozen
        self.heads = heads
        self.tables = tables
        self.options = options
        self.store = store
        self.windows = store.windows
        self.generator = torch.Generator().manual_seed(options.seed)
        self.optimizer = _optimizer(heads)
        self.table_optimizer = _optimizer(tables)
        self.order = torch.empty(0, dtype=torch.int64)
        self.step = 0
        self.seconds = 0.0
        self.settled = True  # between steps: the state is whole
        self.running: Tensor | None = None  # [K]
        self.curve: list[tuple[int, list[float]]] = []  # (step, loss of each offset)

    @property
    def done(self) -> float:
        """0 to 1."""
        o = self.options
        return self.step / o.steps if o.steps is not None else self.seconds / 60 / o.minutes

    def run(self, progress: Callable[[TrainProgress], None] = lambda state: None) -> None:
        """Train until the budget is used. `progress` is called between steps, and may end the run
        by raising. Raises FirpError when training diverges. Unless an exception falls into the few
        milliseconds of an update (`settled` is then False), the state stays that of the last whole
        step.
        """
        while self.done < 1:
            started = time.monotonic()
            done = self.done
            share = min(1, done * 20 + 0.01) * 0.5 * (1 + math.cos(math.pi * done))  # warm up, then fall to 0
            self.optimizer.param_groups[0]["lr"] = self.options.learning_rate * share
            self.table_optimizer.param_groups[0]["lr"] = self.options.correction_learning_rate * share
            drawn = self.order, self.generator.get_state()
            try:
                losses = self._accumulate()
            except BaseException:  # the step did not happen
                self.order = drawn[0]
                self.generator.set_state(drawn[1])
                raise
            self.settled = False
            self.optimizer.step()
            self.table_optimizer.step()
            if done < 0.5:  # which tokens follow which is in the text alone, and comes cheap
                self._learn_pairs()
            self.step += 1
            self.seconds += time.monotonic() - started
            self.running = losses if self.running is None else self.running.lerp(losses, 0.05)
            if self.done * CURVE_POINTS >= len(self.curve):
                self.curve.append((self.step, [round(loss, 4) for loss in self.running.tolist()]))
            self.settled = True
            progress(TrainProgress(done, self.step, self.running.tolist()))
        if not all(
            torch.isfinite(weight).all() for part in (self.heads, self.tables) for weight in part.parameters()
        ):
            raise FirpError(
                "training diverged",
                got="weights that are not finite",
                fix="start again with a lower --learning-rate",
            )

    def _accumulate(self) -> Tensor:
        """Clipped gradients of one step; the losses of its passes, averaged, [K]."""
        self.optimizer.zero_grad(set_to_none=True)
        self.table_optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(self.options.num_predictors)
        table_total = 0.0
        passes = self.options.accumulate
        for _ in range(passes):
            losses, table_losses = self.losses(self._next_batch())
            ((losses.sum() + table_losses.sum()) / passes).backward()
            total += losses.detach().cpu() / passes
            table_total += float(table_losses.detach().sum())
        norm = nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        if not math.isfinite(total.sum() + table_total + norm):
            got = f"loss {total.tolist()}, gradient {norm:.3g} at step {self.step}"
            raise FirpError(
                "training diverged",
                got=got,
                fix="repeat with --resume and a lower --learning-rate, or clean the data",
            )
        return total

    def _learn_pairs(self) -> None:
        for _ in range(PAIR_UPDATES):
            chosen = torch.randint(len(self.windows), (PAIR_WINDOWS,), generator=self.generator)
            self.table_optimizer.zero_grad(set_to_none=True)
            self.tables.pair_loss(self.windows[chosen].to(self.frozen.device)).backward()
            self.table_optimizer.step()

    def _next_batch(self) -> Tensor:
        if len(self.order) < self.options.batch:
            self.order = torch.cat([self.order, torch.randperm(len(self.windows), generator=self.generator)])
        chosen, self.order = self.order[: self.options.batch], self.order[self.options.batch :]
        return chosen

    def losses(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the heads and of the tables on these windows [B], [K] both."""
        k = self.options.num_predictors
        with autocast(self.options):
            rows = self.store.rows(chosen)
            real = rows.real
            anchors = sample_anchors(self.windows[chosen], self.options.anchors, k, self.generator)
            anchors = anchors.to(self.frozen.device)
            following = targets(anchors, k)
            vocab_size = len(self.tables.embeddings)
            shortlist = make_shortlist(at(rows.top_ids, following), vocab_size, self.generator)
            final = self.heads.final(self.frozen, real, anchors)
            student = shortlist.log_probabilities(self.frozen.logits(final, shortlist.tokens))  # [B, A, K, C]
            with torch.no_grad():
                logits = self.frozen.logits(at(real.final, following), shortlist.tokens)
                teacher = logits - at(rows.log_total, following)[..., None]
        losses = shortlist.divergence(teacher, student).mean((0, 1))
        previous = at(self.windows[chosen].to(self.frozen.device), following)
        return losses, self.tables.guess_losses(student.detach(), teacher, previous, shortlist.tokens)

    def state(self) -> dict[str, Any]:
        """Everything to go on from, on the CPU. What only further training needs is left out when
        it is over.
        """
        parts = _PARTS if self.done < 1 else _TRAINED
        state = {name: _on_cpu(getattr(self, name).state_dict()) for name in parts}
        return (
            state
            | {name: getattr(self, name) for name in _VALUES}
            | {"generator": self.generator.get_state()}
        )

    def restore(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        for name in _VALUES:
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)


def _on_cpu(state: Any) -> Any:
    """The same nest of dictionaries and lists, with copies of its tensors."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


def autocast(options: TrainOptions):
    """bfloat16 arithmetic where asked for; the weights that train stay float32."""
    if options.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(options.device).type, torch.bfloat16)


def sample_anchors(input_ids: Tensor, count: int, k: int, generator: torch.Generator) -> Tensor:
    """Positions [B, A] without repetition, each with k real rows after it."""
    batch, length = input_ids.shape
    scores = torch.rand(batch, length - k, generator=generator)
    return scores.topk(min(count, length - k), dim=1).indices.sort(1).values.to(input_ids.device)


def targets(anchors: Tensor, k: int) -> Tensor:
    """The real rows [B, A, K] whose distribution guess j is to match: anchor + j."""
    return anchors[:, :, None] + torch.arange(1, k + 1, device=anchors.device)
