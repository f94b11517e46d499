"""Rows of the Hugging Face model: in float64 the truth, and in the bundle's own type the yardstick,
whose distance from float64 is what rounding costs.

In: a `Reference`, samples, and what is cached before them. Out: their `StageRows`, computed in any type.
"""

import inspect
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from firp.export.verify.rows import Rows, Sample, StageRows
from firp.export.weights.streamed_model import Reference


class _Given(DynamicLayer):
    """Keys and values of tokens that are cached already, in the place of a layer's; it keeps no others."""

    def __init__(self, past: torch.Tensor):
        """past: [2, Hkv, P, Dh] of each sequence."""
        super().__init__()
        self.keys, self.values = past[:, None]
        self.is_initialized = True

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, ...]:
        """All that the rows [N, Hkv, L, Dh] may attend to."""
        pairs = ((self.keys, keys), (self.values, values))
        return tuple(torch.cat([old.expand(len(new), -1, -1, -1), new], -2) for old, new in pairs)


def model_rows(
    reference: Reference,
    prediction_layer: int,
    samples: list[Sample],
    dtype: torch.dtype,
    past: np.ndarray | None = None,
) -> list[StageRows]:
    """Rows that the model computes in `dtype`, a `StageRows` for each sample. past: keys and values
    [2, Hkv, P, Dh] that every layer has cached of the tokens before them.
    """
    options = {"output_hidden_states": True}
    if past is not None:
        cache = DynamicCache()
        layers = reference.checkpoint.config.num_hidden_layers
        values = torch.from_numpy(past).to(dtype)
        cache.layers = [_Given(values) for _ in range(layers)]
        known = inspect.signature(reference.model.forward).parameters
        options["cache" if "cache" in known else "past_key_values"] = cache
    out = reference.run(sequences(samples), dtype, **options)
    states, logits = out.hidden_states[prediction_layer], out.logits  # [N, L, D], [N, L, V]
    if dtype != torch.float64:  # numpy has no bfloat16
        states, logits = states.float(), logits.float()
    return stage_rows(samples, states.numpy(), logits.numpy())


def sequences(samples: list[Sample]) -> torch.Tensor:
    """Token ids [N, L]: a sequence for each path from a tree's root to a leaf, after its prompt. So the
    model runs as it always does, without a mask or a cache of ours. Sequences are padded at their ends,
    which a causal model's rows do not see.
    """
    found = [
        sample.prompt + [sample.tree.tokens[node] for node in path]
        for sample in samples
        for path in _paths(sample)
    ]
    longest = max(map(len, found))
    return torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in found])


def stage_rows(samples: list[Sample], states: np.ndarray, logits: np.ndarray) -> list[StageRows]:
    """What rows of `sequences` have, [N, L, ...], by sample and stage. The prompt's rows are the same in
    prefill and in decoding: these are two ways to one value.
    """
    found = []
    start = 0
    for sample in samples:
        length, paths = len(sample.prompt), _paths(sample)
        where = {}
        for index, path in enumerate(paths, start):
            where |= {node: (index, length + depth) for depth, node in enumerate(path)}
        at = tuple(np.array([where[node] for node in sorted(where)]).T)
        prompt = Rows(states[start, :length], logits[start, :length])
        found.append(StageRows(prompt, prompt, Rows(states[at], logits[at])))
        start += len(paths)
    return found


def _paths(sample: Sample) -> list[list[int]]:
    """Nodes from the root to each leaf of the sample's tree."""
    parents = sample.tree.parents
    paths = []
    for leaf in set(range(len(parents))) - set(parents):
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        paths.append(path)
    return paths
