"""Memory that a calibration needs, told before it starts.

In: the model's blueprint and the options. Out: bytes by what they are for. An estimate, from the
tensors that are alive at the peak of a step (backward through the upper layers);
`benchmarks/memory.py` compares it with what a run took.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firp.calib.training.options import TrainOptions
from firp.calib.training.row_store import TEACHER_TOP
from firp.calib.training.shortlist import SAMPLED, WHOLE
from firp.export.sources.checkpoint import Checkpoint
from firp.runtime.bundle.graph_spec import TOP_K
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import FirpError
from firp.runtime.machine import require_bytes

_ADAM_COPIES = 4  # weight, gradient, two moments, each float32
_LOGITS_COPIES = 6  # student logits, log-probabilities, their gradients; teacher; divergence


def memory_needed(checkpoint: Checkpoint, options: TrainOptions, prediction_layer: int) -> dict[str, int]:
    """Bytes of a training step at its peak, by what they are for."""
    c = checkpoint.config
    o = options
    width = 2 if o.precision == "bfloat16" else 4
    window = min(o.window, c.max_position_embeddings)
    anchors = min(o.anchors, window - o.num_predictors)
    real, pseudo = o.batch * window, o.batch * anchors * o.num_predictors
    upper = c.num_hidden_layers - prediction_layer
    head, kv, inner = c.attention.query_size, c.attention.key_value_size, c.mlp.intermediate_size
    # values of one row that backward needs
    saved_by_layer = 6 * c.hidden_size + 4 * inner + 4 * head + 4 * kv
    keys = window + anchors * o.num_predictors
    attention = o.batch * anchors * o.num_predictors * keys * (2 * c.attention.num_heads + 1)
    compared = vocabulary = c.vocab_size
    if vocabulary > WHOLE:
        compared = min(vocabulary, o.batch * window * TEACHER_TOP + SAMPLED)
    weights = sum(map(math.prod, weight_shapes(c).values()))
    return {
        "model": weights * width,
        "predictors": o.num_predictors * c.hidden_size**2 * 4 * _ADAM_COPIES,
        "path correction": c.vocab_size * 4 * (2 * o.correction_rank * (_ADAM_COPIES + 1) + c.hidden_size),
        "real rows": (real * upper * 2 * kv + window * (4 * c.hidden_size + 3 * inner)) * width
        + window * vocabulary * 8,
        "pseudo rows": (pseudo * upper * saved_by_layer + upper * attention) * width,
        "logits": pseudo * (compared * 4 * _LOGITS_COPIES + TOP_K * o.correction_rank * 12),
    }


def require_training_memory(
    checkpoint: Checkpoint, options: TrainOptions, prediction_layer: int, available: int | None
) -> None:
    """Raises FirpError, with the sum, when the device cannot hold it. available: its free bytes;
    None is not checked.
    """
    require_bytes(
        f"not enough memory on {options.device}",
        memory_needed(checkpoint, options, prediction_layer),
        available,
        fix="lower --batch, --anchors or --window, or take --precision bfloat16",
    )


@contextmanager
def memory_errors(options: TrainOptions) -> Iterator[None]:
    """Turn the device's refusal into one line; what was kept of the run stays."""
    try:
        yield
    # torch.OutOfMemoryError is a RuntimeError; that of the CPU has no class
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(
            error
        ):
            raise
        raise FirpError(
            f"out of memory on {options.device}",
            got=f"--batch {options.batch} --anchors {options.anchors} --window {options.window}",
            fix="lower one of them, raise --accumulate instead, and repeat with --resume",
        ) from error
