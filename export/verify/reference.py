"""Rows of the Hugging Face model: in float64 the truth, and in the bundle's own type the yardstick,
whose distance from float64 is what rounding costs.

In: a `Reference`, samples. Out: their `StageRows`, computed in any type.
"""

import torch

from firp.export.verify.rows import Rows, Sample, StageRows
from firp.export.weights.streamed_model import Reference


def model_rows(
    reference: Reference, prediction_layer: int, samples: list[Sample], dtype: torch.dtype
) -> list[StageRows]:
    """Rows that the model computes in `dtype`, a `StageRows` for each sample. The prompt's rows are
    the same in prefill and in decoding: these are two ways to one value.

    Each path from a tree's root to a leaf is a sequence of its own after the prompt, so the model
    runs as it always does, without a mask or a cache of ours. Sequences are padded at their ends,
    which a causal model's rows do not see.
    """
    sequences = []
    first = []
    for sample in samples:
        first.append(len(sequences))
        sequences += [sample.prompt + [sample.tree.tokens[node] for node in path] for path in _paths(sample)]
    longest = max(map(len, sequences))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in sequences])  # [N, L]
    out = reference.run(ids, dtype, output_hidden_states=True)
    states, logits = out.hidden_states[prediction_layer], out.logits  # [N, L, D], [N, L, V]
    if dtype != torch.float64:  # numpy has no bfloat16
        states, logits = states.float(), logits.float()
    found = []
    for sample, start in zip(samples, first, strict=True):
        length = len(sample.prompt)
        where = {}
        for index, path in enumerate(_paths(sample), start):
            where |= {node: (index, length + depth) for depth, node in enumerate(path)}
        at = tuple(torch.tensor([where[node] for node in sorted(where)]).T)
        prompt = Rows(states[start, :length].numpy(), logits[start, :length].numpy())
        found.append(StageRows(prompt, prompt, Rows(states[at].numpy(), logits[at].numpy())))
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
