"""Trains the path correction: what a draft token is worth given the token that it follows
(method.md, "Beyond the paper").

In: the guesses of draft heads, the token before each, the model's own distribution. Out: low-rank
tables and per-offset scales, which the runtime's tree builder applies as
`firp.runtime.trees.guesses`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firp.runtime.bundle.graph_spec import TOP_K
from firp.runtime.trees.path_correction import PathCorrection


class PathTables(nn.Module):
    """Tables previous and following [V, r]: a projection of the model's own embeddings, for tokens
    rarely seen, plus a free part.
    """

    def __init__(self, embeddings: Tensor, num_predictors: int, rank: int):
        super().__init__()
        vocab_size, size = embeddings.shape
        self.register_buffer(
            "embeddings", F.normalize(embeddings.detach().float(), dim=-1) * size**0.5, persistent=False
        )
        self.project_previous = nn.Parameter(torch.randn(size, rank) * (size * rank) ** -0.5)
        self.project_following = nn.Parameter(torch.zeros(size, rank))
        self.free_previous = nn.Parameter(torch.zeros(vocab_size, rank))
        self.free_following = nn.Parameter(torch.zeros(vocab_size, rank))
        self.weight = nn.Parameter(torch.ones(num_predictors))
        self.log_temperature = nn.Parameter(torch.zeros(num_predictors))

    def previous(self, ids: Tensor) -> Tensor:
        """[...] -> [..., r]."""
        return self._rows(ids, self.project_previous, self.free_previous)

    def following(self, ids: Tensor) -> Tensor:
        """[...] -> [..., r]."""
        return self._rows(ids, self.project_following, self.free_following)

    def _rows(self, ids: Tensor, project: Tensor, free: Tensor) -> Tensor:
        """Rows of a table for ids. For more ids than tokens, the whole table is projected first:
        backward would keep an embedding for each. Rows are taken by F.embedding, whose gradient,
        unlike that of an index, sums in the same order however many threads there are.
        """
        if ids.numel() > len(self.embeddings):
            return F.embedding(ids, self.embeddings @ project + free)
        return self.embeddings[ids] @ project + F.embedding(ids, free)

    def pair_loss(self, windows: Tensor) -> Tensor:
        """Cross entropy in nats of telling which token followed, among the followers of all tokens
        in these windows [n, S]: its optimum is log p(x | u) / p(x) + a constant for each u (noise
        contrastive; the followers are draws from p).
        """
        previous, following = windows[:, :-1].flatten(), windows[:, 1:].flatten()
        scores = self.previous(previous) @ self.following(following).T
        return F.cross_entropy(scores, torch.arange(len(following), device=scores.device))

    def guess_losses(
        self, student: Tensor, teacher: Tensor, previous: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy in nats for each offset, [K], over the student's candidates.

        student, teacher: log-probabilities [B, A, K, C] of tokens [C], None: of all; previous: the
        token ids [B, A, K] that the guesses follow.
        """
        scores, places = student.topk(min(TOP_K, student.shape[-1]), -1)  # [B, A, K, k]
        ids = places if tokens is None else tokens[places]
        correction = (self.following(ids) @ self.previous(previous)[..., None])[..., 0]
        scores = scores / self.log_temperature.exp()[:, None] + self.weight[:, None] * correction
        target = teacher.gather(-1, places).exp()
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-6)
        return -(target * F.log_softmax(scores, -1)).sum(-1).mean((0, 1))

    @torch.no_grad()
    def finish(self) -> PathCorrection:
        """The correction as the runtime applies it; scales are the same for greedy and sampled
        decoding until they are fitted.
        """
        ids = torch.arange(len(self.embeddings), device=self.embeddings.device)
        weight, scale = self.weight.expand(2, -1), (-self.log_temperature).exp().expand(2, -1)
        tables = (table(ids).half() for table in (self.previous, self.following))  # as they are stored
        tensors = (*tables, weight, scale)
        return PathCorrection(*(tensor.float().cpu().numpy() for tensor in tensors))
