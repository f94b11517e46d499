"""The Hugging Face model of a checkpoint, whatever the checkpoint was read from.

In: a `Checkpoint`. Out: a model of transformers that computes in torch, with these weights.
"""

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from firp.export.sources.checkpoint import Checkpoint, transformers_config
from firp.export.sources.tensor_record import TensorRecord
from firp.export.weights.stream import read_chunks
from firp.runtime.errors import CheckpointError


def torch_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model on the CPU, its weights in `dtype`. Raises CheckpointError for a weight that is not
    finite.
    """
    model = empty_model(checkpoint, dtype)
    names = tensors_of(model, checkpoint)
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {}
    for name, sources in names.items():
        parts = [read_tensor(source, checkpoint.tensors[source], dtype) for source in sources]
        state[name] = joined(parts, parameters[name].shape)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The model without memory for its weights. attention: transformers' name of how it is computed;
    None: its own choice.
    """
    config = transformers_config(checkpoint.raw_config)
    config._experts_implementation = "eager"  # the others take no float64
    with _EmptyWithoutMemory():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not weight.is_meta:  # ones of a norm, such as a checkpoint holds
                module._parameters[name] = torch.nn.Parameter(weight.to("meta"))
    return model.eval()


class _EmptyWithoutMemory(TorchFunctionMode):
    """Weights, which modules make as `torch.empty`, take no memory; what they compute when they are made
    does, such as rotary frequencies, for no checkpoint holds it.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.empty:
            return func(*args, **(kwargs or {}) | {"device": "meta"})
        return func(*args, **(kwargs or {}))


def joined(parts: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """A parameter of that shape, of its tensors in order: those of experts are one parameter."""
    return parts[0] if len(parts) == 1 else torch.cat(parts).reshape(shape)


def tensors_of(model: Any, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The tensors of the checkpoint that each parameter of the model holds, in order; a tied head is not
    among them. Raises CheckpointError where the model has others than the checkpoint, as where config.json
    contradicts it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if not isinstance(change, WeightRenaming)]
    used = dict.fromkeys(source for weight in checkpoint.weights for source in weight.sources)
    found: dict[str, tuple[str, ...]] = {}
    for source in used:
        name, _ = rename_source_key(source.partition("[")[0], renamings, converters)  # of all experts
        found[name] = (*found.get(name, ()), source)
    own = {name for name, _ in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}  # of which a checkpoint holds some
    if different := sorted((own ^ set(found)) - (buffers & set(found))):
        raise CheckpointError(
            f"config.json and the tensors of '{checkpoint.path}' disagree",
            got=f"{different[0]} {'only in the tensors' if different[0] in found else 'in no tensor'}",
            expected=f"the weights of {checkpoint.config.architecture}",
            fix="correct config.json",
        )
    return found


def read_tensor(name: str, record: TensorRecord, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the checkpoint in `dtype`. Raises CheckpointError for a value that is not finite."""
    values = torch.empty(math.prod(record.shape), dtype=dtype)
    done = 0
    for chunk in read_chunks(name, record):
        values[done : done + chunk.size] = torch.from_numpy(chunk.astype("float32", copy=False))
        done += chunk.size
    return values.reshape(record.shape)
