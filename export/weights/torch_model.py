"""The Hugging Face model of a checkpoint, whatever the checkpoint was read from.

In: a `Checkpoint`. Out: a model of transformers that computes in torch, with these weights.
"""

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from firp.export.sources.checkpoint import Checkpoint, transformers_config
from firp.export.sources.tensor_record import TensorRecord
from firp.export.weights.stream import read_chunks


def torch_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model on the CPU, its weights in `dtype`. Raises CheckpointError for a weight that is not
    finite.
    """
    model = empty_model(checkpoint, dtype)
    used = [name for weight in checkpoint.weights for name in weight.sources]
    state = {name: read_tensor(name, checkpoint.tensors[name], dtype) for name in used}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The model without memory for its weights. attention: transformers' name of how it is computed;
    None: its own choice.
    """
    config = transformers_config(checkpoint.raw_config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    rotary = model.model.rotary_emb  # holds no weights, but what it computed when it was made
    model.model.rotary_emb = type(rotary)(config)
    return model.eval()


def read_tensor(name: str, record: TensorRecord, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the checkpoint in `dtype`. Raises CheckpointError for a value that is not finite."""
    values = torch.empty(math.prod(record.shape), dtype=dtype)
    done = 0
    for chunk in read_chunks(name, record):
        values[done : done + chunk.size] = torch.from_numpy(chunk.astype("float32", copy=False))
        done += chunk.size
    return values.reshape(record.shape)
