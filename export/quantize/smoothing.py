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
    """Factors [in] f32 of a layer's inputs, 1 for an input that is always 0, and where nothing before the
    layer can divide them. linear: the name of the layer; inputs, weights: largest magnitudes [in]. One
    value feeds all query heads of its group, so that they share a factor in o_proj.
    """
    if not _can_be_divided(config, linear.rpartition(".")[2]):
        return np.ones(len(inputs), np.float32)
    if linear.endswith("o_proj"):
        inputs, weights = (_over_group(config, side) for side in (inputs, weights))
    found = np.maximum(inputs, _LEAST) ** ALPHA / np.maximum(weights, _LEAST) ** (1 - ALPHA)
    return np.where(inputs > 0, found, 1).astype(np.float32)


def _can_be_divided(config: ModelConfig, module: str) -> bool:
    """Whether what makes a layer's inputs makes them for it alone, and is linear in its own weight."""
    block = config.block
    if module == "o_proj":
        return config.attention.clip is None
    if module == "down_proj":
        return config.mlp.gated
    shared = block.parallel and "mlp_norm" not in block.norms
    norm = "input_norm" if module == "qkv_proj" else "mlp_norm"
    return norm in block.norms and not shared


def _over_group(config: ModelConfig, magnitudes: np.ndarray) -> np.ndarray:
    """The largest of each group's heads, for every one of them."""
    attention = config.attention
    heads = magnitudes.reshape(attention.num_key_value_heads, -1, attention.head_dim)
    return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)


def row_divisors(config: ModelConfig, linear: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the outputs [out] of a layer are divided by, so that the layer that reads them finds
    smoothed inputs; None where none does. smoothing: factors by the names of layers that have some.
    """
    layer, _, module = linear.rpartition(".")
    attention = config.attention
    if module == "qkv_proj" and f"{layer}.o_proj" in smoothing:
        heads = smoothing[f"{layer}.o_proj"].reshape(attention.num_key_value_heads, -1, attention.head_dim)
        values = heads[:, 0].reshape(-1)
        return np.concatenate((np.ones(attention.query_size + attention.key_value_size, np.float32), values))
    if module == "gate_up_proj" and f"{layer}.down_proj" in smoothing:
        return np.concatenate(
            (np.ones(config.mlp.intermediate_size, np.float32), smoothing[f"{layer}.down_proj"])
        )
    return None


def norm_divisors(norm: str, smoothing: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the parameters of a norm are divided by; None for one before no smoothed layer."""
    layer, _, module = norm.rpartition(".")
    readers = {"input_norm": ("qkv_proj",), "mlp_norm": ("gate_up_proj", "up_proj")}.get(module, ())
    return next((smoothing[f"{layer}.{name}"] for name in readers if f"{layer}.{name}" in smoothing), None)
