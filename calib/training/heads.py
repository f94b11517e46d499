"""Draft heads: what guesses the tokens after the next one. FIRP, and the two methods that the paper
compares it with.

In: real rows of a frozen model, and anchors (the rows that guess). Out: logits for K offsets;
offset j of anchor i guesses token i + 1 + j. All share the model's own lm_head and train alike, so
that only the idea differs.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firp.calib.training.frozen_model import FrozenModel, RealRows


class Heads(nn.Module, ABC):
    """K matrices [D, D]; a method says where they are applied, and what becomes of their output."""

    method = ""

    def __init__(self, num_predictors: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(hidden_size).repeat(num_predictors, 1, 1))  # [K, D, D]

    @abstractmethod
    def final(self, frozen: FrozenModel, real: RealRows, anchors: Tensor) -> Tensor:
        """Final hidden states [B, A, K, D] of anchors [B, A], for the model's own lm_head."""

    def forward(self, frozen: FrozenModel, real: RealRows, anchors: Tensor) -> Tensor:
        """Logits [B, A, K, V] f32 of anchors [B, A]."""
        return frozen.logits(self.final(frozen, real, anchors))

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Round the matrices to what this type can say."""
        self.weight.copy_(self.weight.to(dtype))

    def map(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., K, D]."""
        return torch.einsum("kij,...j->...ki", self.weight, hidden.to(self.weight.dtype))


class FirpPredictors(Heads):
    """Pseudo hidden states at the prediction layer, sent through the upper layers (arXiv
    2410.20488).
    """

    method = "firp"

    def final(self, frozen: FrozenModel, real: RealRows, anchors: Tensor) -> Tensor:
        return frozen.pseudo_rows(self.map(at(real.hidden, anchors)), real, anchors)


class EarlyExit(Heads):
    """The same maps at the same layer, straight to the final norm and lm_head."""

    method = "early exit"

    def final(self, frozen: FrozenModel, real: RealRows, anchors: Tensor) -> Tensor:
        mapped = self.map(at(real.hidden, anchors))
        return frozen.normed(mapped.to(frozen.dtype))


class Medusa(Heads):
    """A residual block for each offset on the last hidden state, x + SiLU(W x), as in Medusa (arXiv
    2401.10774), W from zero.
    """

    method = "medusa"

    def __init__(self, num_predictors: int, hidden_size: int):
        super().__init__(num_predictors, hidden_size)
        nn.init.zeros_(self.weight)

    def final(self, frozen: FrozenModel, real: RealRows, anchors: Tensor) -> Tensor:
        final = at(real.final, anchors)
        return (final[..., None, :] + F.silu(self.map(final))).to(frozen.dtype)


def at(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows [B, ..., ...] of rows [B, S, ...] at positions [B, ...]."""
    batch = torch.arange(len(rows), device=rows.device).reshape(-1, *[1] * (positions.ndim - 1))
    return rows[batch, positions]
