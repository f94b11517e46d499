"""Tokens over which a step compares guesses with the model: all of a small vocabulary; of a large
one those that the model finds likely, and a sample of the others that stands for them.

In: likely tokens of the rows that are guessed. Out: a `Shortlist`, whose sums over tokens estimate
those over the vocabulary without bias.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = 8192  # vocabularies up to this size are compared whole
SAMPLED = 2048  # other tokens, of a larger one


class Shortlist(NamedTuple):
    """Tokens [C], and the logarithm of how many tokens of the vocabulary each stands for [C]."""

    tokens: Tensor | None  # None: the whole vocabulary
    log_weight: Tensor | float

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """[..., C] -> [..., C], normalized over what the tokens stand for."""
        return logits - (logits + self.log_weight).logsumexp(-1, keepdim=True)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL divergence in nats of the student's log-probabilities [..., C] from the teacher's,
        [...].
        """
        return ((teacher + self.log_weight).exp() * (teacher - student)).sum(-1)


def make_shortlist(likely: Tensor, vocab_size: int, generator: torch.Generator) -> Shortlist:
    """All tokens that are `likely` [...], and a sample of the rest."""
    if vocab_size <= WHOLE:
        return Shortlist(None, 0.0)
    is_likely = torch.zeros(vocab_size, dtype=torch.bool)
    is_likely[likely.flatten().cpu()] = True
    certain, rest = is_likely.nonzero()[:, 0], (~is_likely).nonzero()[:, 0]
    sample = rest[torch.randint(len(rest), (min(SAMPLED, len(rest)),), generator=generator)]
    log_weight = torch.zeros(len(certain) + len(sample))
    log_weight[len(certain) :] = math.log(len(rest) / max(1, len(sample)))
    return Shortlist(torch.cat([certain, sample]).to(likely.device), log_weight.to(likely.device))
