"""A frozen model, run as its two halves: real rows once without gradients, pseudo rows with them.

In: a Hugging Face model of a supported family, on any device, and its checkpoint. Out: hidden states at
and above the prediction layer, and the final states of pseudo rows that attend to the real rows' keys and
values (method.md, "Training the predictors"). The layers are those of the bundle's graphs, in torch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firp.calib.training.torch_graph import TorchGraph, TorchWeights
from firp.export.sources.checkpoint import Checkpoint
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.graphs.attention.layer import PassContext
from firp.runtime.bundle.graphs.halves import decoder_layer, embedded
from firp.runtime.bundle.weight_table import head_name

Keys = dict[int, tuple[Tensor, ...]]  # layer -> keys and values, or latent rows, [B, Hkv, S, Dh]


class RealRows(NamedTuple):
    """What draft heads see of rows that are decoded."""

    hidden: Tensor  # [B, S, D] at the input of the prediction layer
    final: Tensor  # [B, S, D] after the final norm
    keys: Keys  # of the upper layers


class FrozenModel(nn.Module):
    def __init__(self, model: nn.Module, checkpoint: Checkpoint, prediction_layer: int):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.prediction_layer = prediction_layer
        self._graph = TorchGraph(self.config, "float32", TorchWeights(model, checkpoint))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states."""
        return self.model.dtype

    @torch.no_grad()
    def real_rows(self, input_ids: Tensor, trace: list[Tensor] | None = None) -> RealRows:
        """Run the whole model on input_ids [B, S], without gradients. trace: receives the rows
        [B, S, D] as they enter each upper layer, and as they leave the last.
        """
        positions = torch.arange(input_ids.shape[1], device=self.device).expand(input_ids.shape)
        visible = positions[:, :, None] >= positions[:, None, :]
        trace = [] if trace is None else trace
        rows = embedded(self._graph, input_ids, positions)
        lower = range(self.prediction_layer)
        *_, (_, rows, _) = self.layers(rows, lower, positions, visible, positions)
        upper = range(self.prediction_layer, self.config.num_hidden_layers)
        keys = {}
        trace.append(rows)
        for index, state, new in self.layers(rows, upper, positions, visible, positions):
            trace.append(state)
            keys[index] = new
        return RealRows(trace[0], self.normed(trace[-1]), keys)

    def pseudo_rows(self, pseudo: Tensor, real: RealRows, anchors: Tensor) -> Tensor:
        """Final hidden states [B, A, K, D] of pseudo rows [B, A, K, D] that follow anchors [B, A],
        which are positions.
        """
        return self.normed(self.pseudo_states(pseudo, real, anchors)[-1])

    def pseudo_states(self, pseudo: Tensor, real: RealRows, anchors: Tensor) -> Sequence[Tensor]:
        """The pseudo rows [B, A, K, D] as they enter each upper layer, and as they leave the last."""
        batch, count, k, size = pseudo.shape
        length = real.hidden.shape[1]
        device = self.device
        positions = (anchors[:, :, None] + torch.arange(1, k + 1, device=device)).reshape(batch, count * k)
        owner = torch.arange(count, device=device).repeat_interleave(k)
        to_real = torch.arange(length, device=device)[None, None] <= anchors[:, owner, None]  # [B, A*K, S]
        offset = torch.arange(k, device=device).repeat(count)
        to_pseudo = (owner[:, None] == owner[None]) & (offset[:, None] >= offset[None])  # [A*K, A*K]
        visible = torch.cat([to_real, to_pseudo.expand(batch, -1, -1)], 2)
        keys = torch.cat([torch.arange(length, device=device).expand(batch, -1), positions], 1)
        rows = pseudo.reshape(batch, count * k, size).to(self.dtype)
        upper = range(self.prediction_layer, self.config.num_hidden_layers)
        states = [rows]
        states += [state for _, state, _ in self.layers(rows, upper, positions, visible, keys, real.keys)]
        return [state.reshape(pseudo.shape) for state in states]

    def layers(
        self,
        rows: Tensor,
        layers: range,
        positions: Tensor,
        visible: Tensor,
        key_positions: Tensor,
        past: Keys | None = None,
    ) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
        """Run layers over rows [B, T, D] at positions [B, T], after the past. visible: [B, T, keys], of
        key_positions [B, keys], the past's first. Gives each layer, the rows as they leave it, and their
        keys and values.
        """
        graph, batch = self._graph, len(rows)
        biases = {
            name: self._bias(visible, positions, key_positions, window)
            for name, window in self.config.masks(layers).items()
        }
        shared = PassContext(graph, rows, {"position_ids": positions, **biases}, layers, PREFIX)
        c = self.config.attention
        none = rows.new_empty((batch, c.num_key_value_heads, 0, c.head_dim))
        stream = graph.rows(rows, rows.shape[-1])
        for index in layers:
            before = past[index] if past else [none] * len(c.cached)
            slots = tuple(each.to(rows.dtype).permute(2, 0, 1, 3) for each in before)
            stream, new = decoder_layer(graph, index, stream, shared, slots)
            yield index, stream.reshape(rows.shape), tuple(each.permute(1, 2, 0, 3) for each in new)

    def embedded(self, input_ids: Tensor) -> Tensor:
        """The rows of the embedding table for ids [...]."""
        return self._graph.weights["embed_tokens.weight"][input_ids]

    def normed(self, rows: Tensor) -> Tensor:
        """The final norm of rows [..., D]."""
        return self._graph.norm(rows, "norm")

    def logits(self, final: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[..., D] -> [..., V] float32; [..., C] of these tokens [C] alone, where they are given."""
        weights, graph = self._graph.weights, self._graph
        name = head_name(self.config)
        bias = name.replace(".weight", ".bias")
        parameters = [weights[each] for each in (name, bias) if each in weights]
        if tokens is not None:
            parameters = [each[tokens] for each in parameters]
        logits = graph.scaled(F.linear(final, *parameters).float(), self.config.head.scale)
        return graph.soft_capped(logits, self.config.head.softcap)

    def _bias(self, visible: Tensor, rows: Tensor, keys: Tensor, window: int | None) -> Tensor:
        """The additive mask [B, 1, rows, keys] of what is visible, a sliding window included."""
        if window is not None:
            visible = visible & (rows[:, :, None] - keys[:, None, :] < window)
        bias = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(~visible, torch.finfo(self.dtype).min)[:, None]
