"""Smoothing: scales moved from the inputs of a linear layer into its weight (SmoothQuant, Xiao et al.
2023), so that inputs rounded row by row lose less to the few channels that are much larger.

In: rows of a layer's inputs, and its weight. Out: factors [in]. Inputs are divided by them where they
are made, at no cost: by the norm before the layer, or by the rows of the layer that makes them.
"""

import numpy as np
import torch

from firp.runtime.bundle.model_config import ModelConfig

_LEAST = 1e-5
_ROWS = 512  # that the error is estimated on
_STEPS = 30  # ten times as many change the error of a layer of SmolLM2 by a hundredth of it
_RATE = 0.1  # of a step, in the logarithm of the factors


def factors(config: ModelConfig, linear: str, inputs: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    """Factors [in] f32 of what one or several layers read, 1 for an input that is always 0, and where
    nothing before them can divide it. linear: the name of one of the layers; inputs: rows [n, in];
    weight: [out, in], outputs of all of them. One value feeds all query heads of its group, so that they
    share a factor in o_proj.
    """
    module = linear.rpartition(".")[2]
    if not len(inputs) or not _can_be_divided(config, module):
        return np.ones(weight.shape[1], np.float32)
    attention = config.attention
    in_groups = module == "o_proj" and not attention.latent
    heads = (attention.num_key_value_heads, -1, attention.head_dim) if in_groups else (1, 1, -1)
    rows = inputs[:: -(-len(inputs) // _ROWS)]
    found = _least_error(rows, weight, heads)
    live = rows.abs().amax(0) > 0
    found = torch.where(live, found / found[live].log().mean().exp(), 1)
    return found.numpy()


def _least_error(rows: torch.Tensor, weight: torch.Tensor, heads: tuple[int, int, int]) -> torch.Tensor:
    """The factors [in] with which rows [n, in] and a weight [out, in], both rounded, make the least error,
    relative to what each row makes. A step is that of the largest value, of a row's inputs or of an
    output's weights, and rounding errs by it everywhere. heads: inputs as [groups, heads of a group,
    size], of which the heads share factors.
    """
    made = (rows @ weight.T).norm(dim=1)
    rows = (rows / made.clamp(min=_LEAST + 0.01 * made.median())[:, None]).abs()
    weight = weight.abs()
    of_rows, of_weight = rows.square().mean(0), weight.square().sum(0)
    largest = (side.amax(0).reshape(heads).amax(1, keepdim=True) for side in (rows, weight))
    start = [side.clamp(min=_LEAST).log() / 2 for side in largest]
    logs = start[0] - start[1]  # [groups, 1, size]
    optimizer = torch.optim.Adam([logs], _RATE)
    for _ in range(_STEPS):
        scale = logs.exp().expand(of_rows.reshape(heads).shape).reshape(-1)
        row_steps, row_places = (rows / scale).max(1)
        steps, places = (weight * scale).max(1)
        row_steps, steps = row_steps.square() / len(rows), steps.square()
        on_rows, on_weight = row_steps.sum() * of_weight * scale**2, steps.sum() * of_rows / scale**2
        slope = on_rows - on_weight
        slope.index_add_(0, row_places, -row_steps * (of_weight * scale**2).sum())
        slope.index_add_(0, places, steps * (of_rows / scale**2).sum())
        logs.grad = (slope / (on_rows + on_weight).sum()).reshape(heads).sum(1, keepdim=True)
        optimizer.step()
    return logs.exp().expand(of_rows.reshape(heads).shape).reshape(-1)


def _can_be_divided(config: ModelConfig, module: str) -> bool:
    """Whether what makes a layer's inputs makes them for it alone, and is linear in its own weight."""
    block = config.block
    if module in ("embed_tokens", "lm_head"):
        return True
    if module == "o_proj":
        return config.attention.clip is None
    if module == "down_proj":
        return config.mlp.gated and config.mlp.clamped is None
    if module == "q_up_proj":
        return True
    shared = block.parallel and "mlp_norm" not in block.norms
    norm = "input_norm" if module == "qkv_proj" else "mlp_norm"
    return norm in block.norms and not shared


def row_divisors(config: ModelConfig, linear: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the outputs of a layer are divided by, [out], or [H, value_size] of what makes values of
    latent rows, so that the layer that reads them finds smoothed inputs; None where none does.
    smoothing: factors by the names of layers that have some.
    """
    layer, _, module = linear.rpartition(".")
    attention = config.attention
    if module == "value_up" and f"{layer}.o_proj" in smoothing:
        return smoothing[f"{layer}.o_proj"].reshape(attention.num_heads, -1)
    if module == "qkv_proj" and not attention.latent and f"{layer}.o_proj" in smoothing:
        heads = smoothing[f"{layer}.o_proj"].reshape(attention.num_key_value_heads, -1, attention.head_dim)
        values = heads[:, 0].reshape(-1)
        return np.concatenate((np.ones(attention.query_size + attention.key_value_size, np.float32), values))
    if module == "gate_up_proj" and f"{layer}.down_proj" in smoothing:
        found = smoothing[f"{layer}.down_proj"]
        return np.concatenate((np.ones(len(found), np.float32), found))
    return None


_READERS = {  # of a norm's rows: those that share factors have the same ones
    "norm": ("lm_head", "embed_tokens"),
    "input_norm": ("qkv_proj",),
    "q_norm": ("q_up_proj",),
    "mlp_norm": ("gate_up_proj", "up_proj", "experts.0.gate_up_proj", "experts.0.up_proj"),
}


def norm_divisors(norm: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the parameters of a norm are divided by; None for one before no smoothed layer."""
    layer, _, module = norm.rpartition(".")
    prefix = f"{layer}." if layer else ""
    readers = (f"{prefix}{name}" for name in _READERS.get(module, ()))
    return next((smoothing[name] for name in readers if name in smoothing), None)


def column_factors(linear: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the columns [in] of a layer that stays in floats are multiplied with, where it reads what is
    smoothed for others: a router, for its experts; None for any other.
    """
    layer, _, module = linear.rpartition(".")
    return norm_divisors(f"{layer}.mlp_norm", smoothing) if module in ("router", "shared_gate") else None
