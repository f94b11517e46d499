"""The Hugging Face model as the truth, its weights streamed: read from the checkpoint as their module
runs, rounded as a bundle stores them, and forgotten after it, so that memory holds one module.

In: a checkpoint and the type that its weights are stored in. Out: `Reference`, which computes in any
type.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from firp.export.sources.checkpoint import Checkpoint
from firp.export.weights.torch_model import empty_model, joined, read_tensor, tensors_of

ReadTensor = Callable[[str], torch.Tensor]  # a tensor's name in the checkpoint -> its values


# transformers' name of how attention is computed: Falcon's "eager" adds its ALiBi twice
_COMPUTED = {"falcon": "sdpa"}


class Reference:
    """The model of a checkpoint, its weights rounded to `stored`."""

    def __init__(self, checkpoint: Checkpoint, stored: str, read: ReadTensor | None = None):
        """read: the values of a tensor by its name; None: as the checkpoint has them."""
        self.checkpoint = checkpoint
        model_type = checkpoint.raw_config["model_type"]
        self.model = empty_model(checkpoint, torch.float32, _COMPUTED.get(model_type, "eager"))
        self._sources = tensors_of(self.model, checkpoint)
        self._changed = {  # what a bundle stores is the value and 1
            source for weight in checkpoint.weights for source in weight.sources if weight.layout.plus_one
        }
        self._read = read or (lambda name: read_tensor(name, checkpoint.tensors[name], torch.float32))
        self._embeddings = checkpoint.weights[0].sources[0]  # which a tied head shares
        self._stored = getattr(torch, stored)
        self._dtype = torch.float32
        self._empty: dict[tuple[torch.nn.Module, str], torch.nn.Parameter] = {}
        for name, buffer in self.model.named_buffers():
            if name in self._sources:
                buffer.copy_(self._read(*self._sources[name]))
        for name, module in self.model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                called = self._called(name)
                called.register_forward_pre_hook(self._loader(name, module))
                called.register_forward_hook(lambda *_, of=module: self._forget(of), always_call=True)
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

    def module(self, source: str) -> torch.nn.Module:
        """The module of transformers that holds a weight of the checkpoint."""
        (name,) = (name for name, of in self._sources.items() if of == (source,))
        return self.model.get_submodule(name.removesuffix(".weight"))

    @property
    def head(self) -> torch.nn.Module:
        """The module that makes logits."""
        return self.model.get_output_embeddings()

    def routed(self, source: str) -> tuple[torch.nn.Module, torch.nn.Module]:
        """The module that routes rows to experts, and the one that holds these. source: a weight of one."""
        name = next(name for name, of in self._sources.items() if source in of)
        block, _, _ = name.partition(".experts.")
        return self.model.get_submodule(block), self._called(name)

    def _called(self, name: str) -> torch.nn.Module:
        """The module whose call reads the parameters of one: of experts, all that there are of a layer."""
        experts, part, _ = name.partition(".experts.")
        return self.model.get_submodule(f"{experts}.experts" if part else name)

    def _loader(self, prefix: str, module: torch.nn.Module) -> Any:
        def load(_called: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            table = isinstance(module, torch.nn.Embedding)
            # a router that computes in float32 in a model of a half type, as Hunyuan's does
            wide = isinstance(module, torch.nn.Linear) and inputs and inputs[0].dtype == torch.float32
            wide = wide and self._dtype.itemsize < torch.float32.itemsize
            dtype = torch.float32 if wide or table else self._dtype
            for name, empty in module.named_parameters(recurse=False):
                sources = self._sources.get(f"{prefix}.{name}", (self._embeddings,))
                values = joined([self._read(source) for source in sources], empty.shape)
                if sources[0] in self._changed:
                    values = (values + 1).to(self._stored).to(self._dtype) - 1
                else:
                    values = values.to(self._stored).to(dtype)
                self._empty[module, name] = empty
                module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)

        return load

    def _forget(self, module: torch.nn.Module) -> None:
        for name in module._parameters:
            if (module, name) in self._empty:
                module._parameters[name] = self._empty.pop((module, name))


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
