"""What quantization costs: the quantized bundle beside the model in float32, on text that it was not
calibrated on.

In: a bundle's folder, its checkpoint. Out: a `Quality`. For a model without a tokenizer there is no
text, and so no right next token: both sides are then measured against what the model in float32
expects, and the perplexities are those of its own writing.
"""

from pathlib import Path

import numpy as np
import torch

from firp.export.quantize.text import held_out_tokens
from firp.export.sources.checkpoint import Checkpoint
from firp.export.weights.streamed_model import Reference
from firp.runtime.bundle.precision import Quality
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.trees.tree import chain

# By how many percent the perplexity may rise. The method's best case is well below: a model that
# loses more has layers that this format does not fit.
LIMITS = {"int8": 5.0, "int4": 25.0}


def measure_quality(bundle: Path, checkpoint: Checkpoint) -> Quality:
    """Run both over the held-out text."""
    tokens = held_out_tokens(checkpoint)  # [N, L]
    exact = Reference(checkpoint, "float32").run(torch.from_numpy(tokens)).logits  # [N, L, V]
    engine = Engine.load(bundle, check_hashes=False)
    session = engine.session(tokens.shape[1], tokens.shape[1])
    has_text = checkpoint.tokenizer() is not None
    sums = np.zeros(4)  # of both sides' surprise, of KL, of first tokens that agree
    count = 0
    for ids, right in zip(tokens, exact, strict=True):
        session.rewind(0)
        found = torch.from_numpy(session.forward(PassPlan(chain(ids.tolist()))).logits.copy())
        sums += _sums(right[:-1], found[:-1], torch.from_numpy(ids[1:]) if has_text else None)
        count += len(ids) - 1
    exact_surprise, surprise, kl, top1 = sums / count
    return Quality(count, float(np.exp(exact_surprise)), float(np.exp(surprise)), float(kl), float(top1))


def _sums(right: torch.Tensor, found: torch.Tensor, following: torch.Tensor | None) -> np.ndarray:
    """Over rows of logits [n, V]: both sides' negative log probability of the following token, the
    divergence, and rows whose first tokens agree.
    """
    right, found = right.double().log_softmax(-1), found.double().log_softmax(-1)
    chance = right.exp()
    kl = (chance * (right - found)).sum()
    if following is None:
        own = -(chance * right).sum()
        surprises = own, own + kl
    else:
        surprises = (-side.gather(1, following[:, None]).sum() for side in (right, found))
    agree = (right.argmax(-1) == found.argmax(-1)).sum()
    return np.array([*map(float, surprises), float(kl), float(agree)])


def check_quality(quality: Quality, method: str, limit: float | None) -> None:
    """Raises CheckFailedError where the perplexity rose by more than `limit` percent, or by what is
    no number. None: that of LIMITS.
    """
    limit = LIMITS[method] if limit is None else limit
    if not quality.loss_percent <= limit:
        raise CheckFailedError(
            f"{method} costs too much quality",
            got=f"perplexity {quality.perplexity:.4g}, in float32 {quality.float_perplexity:.4g} "
            f"({quality.loss_percent:+.1f} %)",
            expected=f"at most {limit:+g} %",
            fix="export with --quantize none, or raise --quality-limit",
        )
