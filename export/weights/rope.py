"""The rope tables of a bundle.

In: a ModelConfig. Out: cos and sin of every position by their names, scaling included.
"""

import numpy as np

from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.weight_table import rope_names, rope_rows


def rope_tables(config: ModelConfig) -> dict[str, np.ndarray]:
    """cos and sin of every rope, [positions, pairs] f32 each: to the bit those of Hugging Face's
    modules, which torch computes.
    """
    import torch

    positions = torch.arange(rope_rows(config), dtype=torch.float32)
    tables = {}
    for name, rope in config.positions.ropes.items():
        angles = positions[:, None] * torch.tensor(rope.frequencies, dtype=torch.float32)[None]
        values = (angles.cos() * rope.scale, angles.sin() * rope.scale)
        tables |= {table: value.numpy() for table, value in zip(rope_names(name), values, strict=True)}
    return tables
