"""Smoothing: scales moved from the inputs of a linear layer into its weight (SmoothQuant, Xiao et al.
2023), so that inputs rounded row by row lose less to the few channels that are much larger.

In: the largest magnitudes of a layer's inputs, and of its weight by input. Out: factors [in]. Inputs
are divided by them where they are made, at no cost: by the norm before the layer, or by the rows of
the layer that makes them.
"""

import numpy as np

from firp.runtime.bundle.model_config import ModelConfig

ALPHA = 0.5  # share of the difficulty that weights take
_LEAST = np.float32(1e-5)


def factors(config: ModelConfig, linear: str, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors [in] f32 of what one or several layers read, 1 for an input that is always 0, and where
    nothing before them can divide it. linear: the name of one of the layers; inputs, weights: largest
    magnitudes [in]. One value feeds all query heads of its group, so that they share a factor in o_proj.
    """
    module = linear.rpartition(".")[2]
    if not _can_be_divided(config, module):
        return np.ones(len(inputs), np.float32)
    if module == "o_proj" and not config.attention.latent:
        inputs, weights = (_over_group(config, side) for side in (inputs, weights))
    found = np.maximum(inputs, _LEAST) ** ALPHA / np.maximum(weights, _LEAST) ** (1 - ALPHA)
    return np.where(inputs > 0, found, 1).astype(np.float32)


def _can_be_divided(config: ModelConfig, module: str) -> bool:
    """Whether what makes a layer's inputs makes them for it alone, and is linear in its own weight."""
    block = config.block
    if module == "o_proj":
        return config.attention.clip is None
    if module == "down_proj":
        return config.mlp.gated and config.mlp.clamped is None
    if module == "q_up_proj":
        return True
    shared = block.parallel and "mlp_norm" not in block.norms
    norm = "input_norm" if module == "qkv_proj" else "mlp_norm"
    return norm in block.norms and not shared


def _over_group(config: ModelConfig, magnitudes: np.ndarray) -> np.ndarray:
    """The largest of each group's heads, for every one of them."""
    attention = config.attention
    heads = magnitudes.reshape(attention.num_key_value_heads, -1, attention.head_dim)
    return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)


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
    "input_norm": ("qkv_proj",),
    "q_norm": ("q_up_proj",),
    "mlp_norm": ("gate_up_proj", "up_proj", "experts.0.gate_up_proj", "experts.0.up_proj"),
}


def norm_divisors(norm: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the parameters of a norm are divided by; None for one before no smoothed layer."""
    layer, _, module = norm.rpartition(".")
    readers = (f"{layer}.{name}" for name in _READERS.get(module, ()))
    return next((smoothing[name] for name in readers if name in smoothing), None)


def column_factors(linear: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the columns [in] of a layer that stays in floats are multiplied with, where it reads what is
    smoothed for others: a router, for its experts; None for any other.
    """
    layer, _, module = linear.rpartition(".")
    return norm_divisors(f"{layer}.mlp_norm", smoothing) if module in ("router", "shared_gate") else None
