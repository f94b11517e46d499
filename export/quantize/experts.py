"""Experts of one layer as integers, each decided on the rows that its router sends there.

In: the experts of a layer, and the module of the model that holds them. Out: the plans of all of them,
and of the MLP that every row runs beside them.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import gelu, relu, silu

from firp.export.quantize.decision import Decision
from firp.export.sources.checkpoint import Weight
from firp.export.weights.stream import read_array
from firp.export.weights.streamed_model import Reference
from firp.runtime.bundle.model_config import MlpConfig

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(gelu, approximate="tanh"),
    "relu": relu,
    "relu2": lambda rows: relu(rows) ** 2,
}


class RoutedLayer:
    """One layer's experts. The first matrices read rows of one norm, and are decided together; each
    second one is decided on what the first one of its expert, rounded, makes of its rows. An expert that
    no row of the text reaches is rounded as it is.
    """

    def __init__(self, reference: Reference, weights: list[Weight], decide: Decision):
        self._decide = decide
        self._first = {_mlp(weight): weight for weight in weights if "down_proj" not in weight.name}
        self._second = {_mlp(weight): weight for weight in weights if "down_proj" in weight.name}
        self._biases = {each.name: each for each in decide.checkpoint.weights if each.name.endswith(".bias")}
        routed = next(weight for weight in weights if ".experts." in weight.name)
        block, self._experts = reference.routed(routed.sources[0])
        block.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, block: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        rows, chosen = self._routed(block, args, kwargs)
        reached = {mlp: rows[_reaches(mlp, chosen)] for mlp in self._first}
        self._decide(list(self._first.values()), rows, list(reached.values()))
        for mlp, weight in self._second.items():
            inner = self._inner(self._first[mlp], reached[mlp])
            self._decide([weight], inner, [inner])

    def _routed(
        self, block: torch.nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [n, D] as experts get them, and the experts [n, k] of each: the block runs until there."""
        found: list[torch.Tensor] = []

        def stop(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.extend(inputs[:2])
            raise _RoutedError

        handle = self._experts.register_forward_pre_hook(stop, prepend=True)
        try:
            block.forward(*args, **kwargs)
        except _RoutedError:
            rows, chosen = (part.reshape(-1, part.shape[-1]) for part in found)
            return rows, chosen
        finally:
            handle.remove()
        raise RuntimeError(f"{type(block).__name__} ran without its experts")

    def _inner(self, first: Weight, rows: torch.Tensor) -> torch.Tensor:
        """What the second matrix reads, [m, inner], of rows [m, D]."""
        name = first.name.removesuffix(".weight")
        made = rows @ torch.from_numpy(self._decide.linears[name].values()).T
        if bias := self._biases.get(f"{name}.bias"):
            made = made + torch.from_numpy(read_array(bias, self._decide.checkpoint.tensors))
        return _activated(self._decide.checkpoint.config.mlp, made)


class _RoutedError(Exception):
    """The rows of a block have reached its experts."""


def _mlp(weight: Weight) -> str:
    """ "layers.{i}.experts.{e}", or "layers.{i}.shared"."""
    return weight.name.rpartition(".")[0].rpartition(".")[0]


def _reaches(mlp: str, chosen: torch.Tensor) -> torch.Tensor:
    """Which rows an MLP gets, [n]. chosen: the experts of each row, [n, k]."""
    _, _, expert = mlp.partition(".experts.")
    return (chosen == int(expert)).any(1) if expert else torch.ones(len(chosen), dtype=torch.bool)


def _activated(mlp: MlpConfig, made: torch.Tensor) -> torch.Tensor:
    """The activation of an MLP on what its first matrix makes of rows."""
    act = _ACTIVATIONS[mlp.activation]
    if not mlp.gated:
        return act(made)
    gate, up = made.chunk(2, -1)
    if not mlp.clamped:
        return act(gate) * up
    limit, slope = mlp.clamped.limit, mlp.clamped.slope
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(slope * gate) * (up + 1)
