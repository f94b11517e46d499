"""What a source found, put together as a `Checkpoint` whose tensors are those that its graphs need.

In: an architecture, tensors by Hugging Face's names, and the rest of a checkpoint. Out: a
`Checkpoint`, or a CheckpointError that names tensors.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firp.export.families.names import Names
from firp.export.sources.architecture import Architecture
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.sources.safetensors_file import same_bytes
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import CheckpointError

# Ends of the names of tensors that older versions of transformers saved and nobody reads: masks, and
# frequencies that follow from the configuration.
_BUFFERS = (
    "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
    ".attn.causal_mask", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached",
)  # fmt: skip

# What stands before the names of a text model's body in a larger model; {}: what stands there otherwise.
_PARTS = ("language_model.{}.", "model.language_model.", "model.language_model.{}.", "model.text_model.")


def assemble(
    path: Path,
    raw_config: dict[str, Any],
    architecture: Architecture,
    tensors: dict[str, TensorRecord],
    eos_token_ids: tuple[int, ...],
    companions: Mapping[str, Path | bytes],
) -> Checkpoint:
    """A checkpoint whose every tensor is there, has its shape and is used. Raises CheckpointError."""
    names = architecture.names
    tensors = _with_prefix(tensors, names, architecture.config)
    tensors = _experts_apart(tensors, names, architecture.config)
    config = dataclasses.replace(architecture.config, biases=_biases(tensors, names, architecture.config))
    weights = tuple(
        Weight(name, shape, *names.place(name, config)) for name, shape in weight_shapes(config).items()
    )
    checkpoint = Checkpoint(path, config, weights, tensors, eos_token_ids, raw_config, companions)
    _check_tensors(checkpoint, architecture.ignored, names.place("lm_head.weight", config).sources)
    return checkpoint


def _with_prefix(
    tensors: dict[str, TensorRecord], names: Names, config: ModelConfig
) -> dict[str, TensorRecord]:
    """Tensors by the names that a model for text has: those of a model without its head lack the prefix,
    those of a part of a larger one have another.
    """
    (embedding,) = names.place("embed_tokens.weight", config).sources
    prefix, _, rest = embedding.partition(".")
    if embedding in tensors:
        return tensors
    if rest in tensors:
        heads = names.place("lm_head.weight", config).sources
        return {name if name in heads else f"{prefix}.{name}": record for name, record in tensors.items()}
    part = next((part for part in _PARTS if f"{part.format(prefix)}{rest}" in tensors), None)
    if part is None:
        return tensors
    before = part.format(prefix)
    return {
        f"{prefix}.{name.removeprefix(before)}" if name.startswith(before) else _outside(name): record
        for name, record in tensors.items()
    }


def _outside(name: str) -> str:
    return name.removeprefix("language_model.") if name.startswith("language_model.lm_head.") else name


def _experts_apart(
    tensors: dict[str, TensorRecord], names: Names, config: ModelConfig
) -> dict[str, TensorRecord]:
    """Tensors that all experts of a layer have in common, as one of each expert: "name[3]"."""
    found = dict(tensors)
    count = config.experts.count if config.experts else 0
    for weight in (name for name in weight_shapes(config) if ".experts.0." in name):
        for kind in (weight, weight.replace(".weight", ".bias")):
            for source in names.place(kind, config).sources:
                name, stacked, _ = source.partition("[")
                if not stacked or name not in found:
                    continue
                record = found.pop(name)
                if not record.shape or not record.shape[0] or record.shape[0] % count:
                    expected = f"something of each of {count} experts"
                    raise CheckpointError(f"wrong shape of {name}", got=record.shape, expected=expected)
                found |= {f"{name}[{index}]": part for index, part in enumerate(record.apart(count))}
    return found


def _biases(tensors: dict[str, TensorRecord], names: Names, config: ModelConfig) -> tuple[str, ...]:
    """Modules with a bias: those that have one in the first layer, or anywhere."""
    found = set()
    for name in weight_shapes(config):
        module = name.removesuffix(".weight")
        sources = names.place(f"{module}.bias", config).sources
        if any(source in tensors for source in sources):
            found.add(module.split(".", 2)[-1] if module.startswith("layers.") else module)
    return tuple(sorted(found))


def _check_tensors(checkpoint: Checkpoint, ignored: tuple[str, ...], heads: tuple[str, ...]) -> None:
    """Every tensor is used exactly as the graphs need it, or named in an error. ignored: expressions for
    those that transformers does not read either. heads: the tensor of a head that is not tied.
    """
    tensors = checkpoint.tensors
    weights = checkpoint.weights
    used = {source for weight in weights for source in weight.sources}
    if missing := sorted(used - set(tensors)):
        raise CheckpointError(
            f"{len(missing)} tensors missing in '{checkpoint.path}'",
            got=_some(missing),
            fix="complete the checkpoint",
        )
    architecture = checkpoint.config.architecture
    unused = {name for name in set(tensors) - used if not name.endswith(_BUFFERS)}
    unused = {name for name in unused if not name.startswith(_later_layers(checkpoint))}
    unused -= {name for name in unused for each in ignored if re.search(each, name)}
    (head,), embedding = heads, weights[0].sources[0]
    if checkpoint.config.tie_word_embeddings and head in unused:
        if not same_bytes(tensors[head], tensors[embedding]):
            raise CheckpointError(
                f"tie_word_embeddings is true but {head} differs from {embedding}",
                got=f"'{checkpoint.path}'",
                fix=f"set tie_word_embeddings to false in config.json, or remove {head}",
            )
        unused.remove(head)
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors in '{checkpoint.path}' that {architecture} does not use",
            got=_some(sorted(unused)),
        )
    for weight in weights:
        shapes = [tensors[source].shape for source in weight.sources]
        if shapes and not _fits(weight, shapes):
            raise CheckpointError(
                f"wrong shape of {' + '.join(weight.sources)}", got=shapes, expected=list(weight.shape)
            )


def _later_layers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Beginnings of the names of layers after the last, which predict tokens after the next: firp trains
    predictors of its own.
    """
    count, first = (
        checkpoint.raw_config.get("num_nextn_predict_layers") or 0,
        checkpoint.config.num_hidden_layers,
    )
    return tuple(f"model.layers.{index}." for index in range(first, first + count))


def _fits(weight: Weight, shapes: list[tuple[int, ...]]) -> bool:
    """Whether tensors of these shapes make the weight."""
    layout = weight.layout
    shapes = [shape or (1,) for shape in shapes]  # single numbers
    if layout.transposed:
        shapes = [shape[::-1] for shape in shapes]
    if any(len(shape) < 1 or shape[1:] != shapes[0][1:] for shape in shapes):
        return False
    joined = (sum(shape[0] for shape in shapes) - layout.skipped, *shapes[0][1:])
    blocks = layout.blocks or len(layout.order or (0,))
    if joined[0] % blocks:
        return False
    wanted = weight.shape
    if layout.blocks:
        joined = (joined[0] // blocks * len(layout.order), *joined[1:])
        wanted = (math.prod(wanted[:-1]), wanted[-1])
    if len(wanted) == 1 and joined[0] == 1:
        joined = joined[1:] or joined
    if len(wanted) == 2 and len(shapes[0]) == 1:  # a vector of each head
        wanted = (wanted[0] * wanted[1],)
    return joined == wanted


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
