"""A frozen Hugging Face model, run as its two halves: real rows once without gradients, pseudo rows
with them.

In: a decoder-only model of a supported family, on any device. Out: hidden states at and above the
prediction layer, and the final states of pseudo rows that attend to the real rows' keys and values
(method.md, "Training the predictors").
"""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RealRows(NamedTuple):
    """What draft heads see of rows that are decoded."""

    hidden: Tensor  # [B, S, D] at the input of the prediction layer
    final: Tensor  # [B, S, D] after the final norm
    keys: dict[int, tuple[Tensor, Tensor]]  # upper layer -> keys, values [B, Hkv, S, Dh]


class _Recorder:
    """The part of a Hugging Face cache that a decoder layer calls: keeps what it is given."""

    def __init__(self):
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        self.layers[layer] = (keys, values)
        return keys, values


class _Prefix:
    """Puts the real rows' keys and values before those of the pseudo rows, and keeps nothing."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]]):
        self._layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        past_keys, past_values = self._layers[layer]
        return torch.cat([past_keys, keys.to(past_keys.dtype)], 2), torch.cat(
            [past_values, values.to(past_values.dtype)], 2
        )


class FrozenModel(nn.Module):
    def __init__(self, model: nn.Module, prediction_layer: int, sliding_window: int | None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.prediction_layer = prediction_layer
        self.window = sliding_window
        parameters = inspect.signature(type(model.model.layers[0]).forward).parameters
        # transformers renamed it in its fifth version
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def real_rows(self, input_ids: Tensor, trace: list[Tensor] | None = None) -> RealRows:
        """Run the whole model on input_ids [B, S], without gradients. trace: receives the rows
        [B, S, D] as they enter each upper layer, and as they leave the last.
        """
        positions = torch.arange(input_ids.shape[1], device=self.device)[None]
        bias = self._bias(positions[:, :, None] >= positions[:, None, :], positions, positions)
        decoder = self.model.model
        cache = _Recorder()
        trace = [] if trace is None else trace
        rows = decoder.embed_tokens(input_ids)
        rope = decoder.rotary_emb(rows, position_ids=positions)
        for index, layer in enumerate(decoder.layers):
            if index == self.prediction_layer:
                cache = _Recorder()
            if index >= self.prediction_layer:
                trace.append(rows)
            rows = layer(
                rows,
                attention_mask=bias,
                position_ids=positions,
                **{self.cache_name: cache},
                position_embeddings=rope,
            )
        trace.append(rows)
        return RealRows(trace[0], decoder.norm(rows), cache.layers)

    def pseudo_rows(self, pseudo: Tensor, real: RealRows, anchors: Tensor) -> Tensor:
        """Final hidden states [B, A, K, D] of pseudo rows [B, A, K, D] that follow anchors [B, A],
        which are positions.
        """
        return self.model.model.norm(self.pseudo_states(pseudo, real, anchors)[-1])

    def pseudo_states(self, pseudo: Tensor, real: RealRows, anchors: Tensor) -> Sequence[Tensor]:
        """The pseudo rows [B, A, K, D] as they enter each upper layer, and as they leave the last."""
        batch, count, k, size = pseudo.shape
        decoder = self.model.model
        length = real.hidden.shape[1]
        device = self.device
        positions = (anchors[:, :, None] + torch.arange(1, k + 1, device=device)).reshape(batch, count * k)
        owner = torch.arange(count, device=device).repeat_interleave(k)
        to_real = torch.arange(length, device=device)[None, None] <= anchors[:, owner, None]  # [B, A*K, S]
        offset = torch.arange(k, device=device).repeat(count)
        to_pseudo = (owner[:, None] == owner[None]) & (offset[:, None] >= offset[None])  # [A*K, A*K]
        visible = torch.cat([to_real, to_pseudo.expand(batch, -1, -1)], 2)
        keys = torch.cat([torch.arange(length, device=device).expand(batch, -1), positions], 1)
        bias = self._bias(visible, positions, keys)
        rows = pseudo.reshape(batch, count * k, size).to(self.model.dtype)
        rope = decoder.rotary_emb(rows, position_ids=positions)
        cache = _Prefix(real.keys)
        states = [rows]
        for layer in decoder.layers[self.prediction_layer :]:
            rows = layer(
                rows,
                attention_mask=bias,
                position_ids=positions,
                **{self.cache_name: cache},
                position_embeddings=rope,
            )
            states.append(rows)
        return [state.reshape(pseudo.shape) for state in states]

    def logits(self, final: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[..., D] -> [..., V] float32; [..., C] of these tokens [C] alone, where they are given."""
        if tokens is None:
            return self.model.lm_head(final).float()
        return F.linear(final, self.model.lm_head.weight[tokens]).float()

    def _bias(self, visible: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        """The additive mask [B, 1, rows, keys] of what is visible, the sliding window included."""
        if self.window is not None:
            visible = visible & (rows[:, :, None] - keys[:, None, :] < self.window)
        bias = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.device)
        return bias.masked_fill_(~visible, torch.finfo(self.model.dtype).min)[:, None]
