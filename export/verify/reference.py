"""The Hugging Face model as the truth: in float64, and once more in the bundle's own type, whose
distance from float64 is what rounding costs.

In: a checkpoint, the bundle's type, samples. Out: their `StageRows`, computed in any type. Weights
are read from the checkpoint as their module runs, rounded as the bundle stores them, and forgotten
after it: what the format costs is no error of the graphs, and memory holds one module.
"""

import contextlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from firp.export.sources.checkpoint import Checkpoint
from firp.export.verify.rows import Rows, Sample, StageRows
from firp.export.weights.torch_model import empty_model, read_tensor


class Reference:
    """The model of a checkpoint, its weights rounded to `stored`."""

    def __init__(self, checkpoint: Checkpoint, stored: str):
        self.model = empty_model(checkpoint, torch.float32, "eager")
        self._tensors = checkpoint.tensors
        self._embeddings = checkpoint.weights[0].sources[0]  # which a tied head shares
        self._stored = getattr(torch, stored)
        self._dtype = torch.float32
        self._empty: dict[tuple[torch.nn.Module, str], torch.nn.Parameter] = {}
        for name, module in self.model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._loader(name))
                module.register_forward_hook(self._forget, always_call=True)
            if isinstance(module, torch.nn.Embedding):  # a few rows of a large table
                module.register_forward_hook(lambda *call: call[-1].to(self._dtype))

    def run(self, input_ids: torch.Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """What the model says of ids [N, L], computed in `dtype`. options: of transformers'
        `forward`.
        """
        self._dtype = dtype
        double = _StayingDouble() if dtype == torch.float64 else contextlib.nullcontext()
        with torch.no_grad(), double:
            return self.model(input_ids=input_ids, use_cache=False, **options)

    def _loader(self, prefix: str) -> Any:
        def load(module: torch.nn.Module, _: Any) -> None:
            table = isinstance(module, torch.nn.Embedding)
            for name, empty in module.named_parameters(recurse=False):
                source = f"{prefix}.{name}" if f"{prefix}.{name}" in self._tensors else self._embeddings
                values = read_tensor(source, self._tensors[source], torch.float32)
                values = values.to(self._stored).to(torch.float32 if table else self._dtype)
                self._empty[module, name] = empty
                module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)

        return load

    def _forget(self, module: torch.nn.Module, *_: Any) -> None:
        for name in module._parameters:
            if (module, name) in self._empty:
                module._parameters[name] = self._empty.pop((module, name))


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
