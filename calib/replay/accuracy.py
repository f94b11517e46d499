"""How good draft heads are on held-out text: accuracy by offset, and how like real hidden states
the pseudo ones become.

In: a frozen model, heads, held-out windows. Out: shares of guesses, cosines. Teacher-forced; the
target is the model's own greedy token.
"""

import numpy as np
import torch
import torch.nn.functional as F

from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors, Heads, at
from firp.calib.training.trainer import sample_anchors, targets
from firp.export.bundle.predictor_dir import Accuracy

TOP = (1, 3, 5, 10)
ANCHORS = 64  # of a window
MAX_WINDOWS = 100
_BATCH = 4


@torch.no_grad()
def accuracy(frozen: FrozenModel, heads: Heads, windows: np.ndarray) -> Accuracy:
    hits = torch.zeros(len(TOP), heads.weight.shape[0])
    total = 0
    for real, _, anchors, following in _batches(frozen, heads, windows):
        target = frozen.logits(at(real.final, following)).argmax(-1)  # [B, A, K]
        guessed = heads(frozen, real, anchors).topk(max(TOP), -1).indices == target[..., None]
        hits += torch.stack([guessed[..., :n].any(-1).sum((0, 1)) for n in TOP]).cpu()
        total += anchors.numel()
    return Accuracy(
        *(tuple(round(share, 4) for share in row) for row in (hits / total).tolist()), guesses=total
    )


@torch.no_grad()
def similarity(frozen: FrozenModel, heads: FirpPredictors, windows: np.ndarray) -> list[list[float]]:
    """[K][N - t + 1]: mean cosine of pseudo and real hidden states as they enter each layer from t
    on, and leave the last.
    """
    sums = 0
    batches = 0
    for real, states, anchors, following in _batches(frozen, heads, windows[: MAX_WINDOWS // 4]):
        pseudo = frozen.pseudo_states(heads.map(at(real.hidden, anchors)), real, anchors)
        truth = [at(state, following) for state in states]
        pairs = zip(pseudo, truth, strict=True)
        sums += torch.stack(
            [F.cosine_similarity(a.float(), b.float(), dim=-1).mean((0, 1)) for a, b in pairs]
        )
        batches += 1
    return [[round(value, 4) for value in row] for row in (sums / batches).T.tolist()]


def _batches(frozen: FrozenModel, heads: Heads, windows: np.ndarray):
    generator = torch.Generator().manual_seed(0)
    k = heads.weight.shape[0]
    for window in torch.from_numpy(windows[:MAX_WINDOWS]).split(_BATCH):
        ids = window.to(frozen.device)
        anchors = sample_anchors(ids, ANCHORS, k, generator)
        states: list[torch.Tensor] = []
        yield frozen.real_rows(ids, states), states, anchors, targets(anchors, k)
