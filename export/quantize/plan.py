"""What every linear layer of a model becomes, found in one run of the model over a calibration text.

In: a checkpoint, a method, token ids. Out: a `Plan`: for each layer its format, its smoothing, and
how to make its integers. The model's weights are streamed, and a layer that is decided runs on with
its rounded weight, so that those after it are measured on the inputs that they will see.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from firp.export.quantize.decision import Decision, Plan
from firp.export.quantize.experts import RoutedLayer
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.weights.streamed_model import Reference
from firp.runtime.bundle.weight_table import head_name
from firp.runtime.progress import Progress

_MATRICES = ("attention_gate", "qkv_proj", "q_up_proj", "o_proj", "gate_up_proj", "up_proj", "down_proj")
_SHARED_BY = {"attention_gate": "qkv_proj"}  # a layer, and one that reads the same inputs


def is_linear(weight: str) -> bool:
    """Whether a weight of that name is one of a layer's matrices that are stored as integers."""
    module, _, kind = weight.rpartition(".")
    return module.startswith("layers.") and kind == "weight" and module.rpartition(".")[2] in _MATRICES


def make_plan(
    checkpoint: Checkpoint, method: str, tokens: np.ndarray, scratch: Path, progress: Progress
) -> Plan:
    """Run the model over tokens [N, L] and decide. scratch: a folder for what is computed on the way.
    Raises CheckpointError for activations that are not finite.
    """
    weights = [weight for weight in checkpoint.weights if is_linear(weight.name)]
    decide = Decision(checkpoint, method, scratch, lambda done: progress("quantizing", done, len(weights)))
    reference = Reference(checkpoint, "float32", decide.tensor)
    for place, together in _grouped(weights).items():
        (RoutedLayer if place.endswith(".experts") else _Readers)(reference, together, decide)
    head = next(weight for weight in checkpoint.weights if weight.name == head_name(checkpoint.config))
    reference.head.register_forward_pre_hook(lambda _, inputs: decide.head(head, inputs[0]))
    reference.run(torch.from_numpy(tokens))
    progress("quantizing", len(weights), len(weights))
    return Plan(method, tokens.size, decide.linears)


def _grouped(weights: Sequence[Weight]) -> dict[str, list[Weight]]:
    """Weights that are decided together: those that read the same inputs, and all experts of a layer
    with the MLP that every row runs beside them, as "layers.{i}.experts".
    """
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        _, index, *inside, module, _ = weight.name.split(".")
        place = "experts" if inside else _SHARED_BY.get(module, module)
        found.setdefault(f"layers.{index}.{place}", []).append(weight)
    return found


class _Readers:
    """Modules of the model that read the same inputs, and are one or several layers of ours."""

    def __init__(self, reference: Reference, weights: list[Weight], decide: Decision):
        self._weights = weights
        self._decide = decide
        for weight in weights:
            for source in weight.sources:
                # before the module's weights are read
                reference.module(source).register_forward_pre_hook(self._before, prepend=True)

    def _before(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if self._weights:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            self._decide(self._weights, rows, [rows] * len(self._weights))
            self._weights = []
