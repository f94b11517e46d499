"""The rope tables of a bundle.

In: a ModelConfig. Out: cos and sin of every position, scaling included.
"""

import numpy as np

from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.weight_table import ROPE_TABLES, rope_shapes


def rope_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, [positions, Dh / 2] f32 each: to the bit those of Hugging Face's modules, which
    torch computes.
    """
    import torch

    rows, _ = rope_shapes(config)[ROPE_TABLES[0]]
    positions = torch.arange(rows, dtype=torch.float32)
    angles = positions[:, None] * torch.tensor(config.rope.frequencies, dtype=torch.float32)[None]
    cos, sin = (table * config.rope.scale for table in (angles.cos(), angles.sin()))
    return cos.numpy(), sin.numpy()
