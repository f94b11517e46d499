"""The Hugging Face model as the truth: in float64, and once more in the bundle's own type, whose
distance from float64 is what rounding costs.

In: a checkpoint, the bundle's type, samples. Out: the model with weights as the bundle stores
them, and its `StageRows` computed in any type, with the weights of one module at a time in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from firp.export.sources.checkpoint import Checkpoint
from firp.export.verify.rows import Rows, Sample, StageRows
from firp.export.weights.torch_model import torch_model


def load_model(checkpoint: Checkpoint, dtype: str) -> Any:
    """The model in float32, its weights rounded to `dtype`: what the format costs is no error of
    the graphs.
    """
    model = torch_model(checkpoint, torch.float32, "eager")
    stored = getattr(torch, dtype)
    if stored != torch.float32:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(stored).float()
    return model


def model_rows(
    model: Any, prediction_layer: int, samples: list[Sample], dtype: torch.dtype
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
    with torch.no_grad(), computing_in(model, dtype):
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
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


@contextmanager
def computing_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let a float32 `model` compute in `dtype` inside the block. A module's own weights are in it
    only while the module runs, so memory grows by the largest module, and the weights come back
    bit for bit.
    """
    if dtype == torch.float32:
        yield
        return
    stored: dict[torch.nn.Parameter, torch.Tensor] = {}

    def convert(module: torch.nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            stored[parameter] = parameter.data
            parameter.data = parameter.data.to(dtype)

    def restore(module: torch.nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = stored.pop(parameter)

    hooks = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # a few rows of a large table
            hooks.append(module.register_forward_hook(lambda *call: call[-1].to(dtype)))
        elif any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(convert))
            hooks.append(module.register_forward_hook(restore, always_call=True))
    try:
        with _StayingDouble():
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _StayingDouble(TorchFunctionMode):
    """Keeps float64 values in float64. Models compute norms and softmax in float32 whatever their
    own type is, which helps a half type and would hurt here. Rope tables stay what they are:
    float32, by the model's definition, and the same in the bundle.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in values):
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
