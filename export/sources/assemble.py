"""What a source found, put together as a `Checkpoint` whose tensors are those that its graphs need.

In: an architecture, tensors by Hugging Face's names, and the rest of a checkpoint. Out: a
`Checkpoint`, or a CheckpointError that names tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firp.export.sources.architecture import Architecture
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.sources.safetensors_file import same_bytes
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import CheckpointError


def assemble(
    path: Path,
    raw_config: dict[str, Any],
    architecture: Architecture,
    tensors: dict[str, TensorRecord],
    eos_token_ids: tuple[int, ...],
    companions: Mapping[str, Path | bytes],
) -> Checkpoint:
    """A checkpoint whose every tensor is there, has its shape and is used. Raises CheckpointError."""
    config = architecture.config
    names = architecture.family.names
    weights = tuple(Weight(name, shape, names.sources(name)) for name, shape in weight_shapes(config).items())
    checkpoint = Checkpoint(path, config, weights, tensors, eos_token_ids, raw_config, companions)
    _check_tensors(checkpoint)
    return checkpoint


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor is used exactly as the graphs need it, or named in an error."""
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
    unused = {name for name in set(tensors) - used if not name.endswith("rotary_emb.inv_freq")}
    if checkpoint.config.tie_word_embeddings and "lm_head.weight" in unused:
        if not same_bytes(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise CheckpointError(
                "tie_word_embeddings is true but lm_head.weight differs from model.embed_tokens.weight",
                got=f"'{checkpoint.path}'",
                fix="set tie_word_embeddings to false in config.json, or remove lm_head.weight",
            )
        unused.remove("lm_head.weight")
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors in '{checkpoint.path}' that {architecture} does not use",
            got=_some(sorted(unused)),
        )
    for weight in weights:
        shapes = [tensors[source].shape for source in weight.sources]
        fits = all(len(s) == len(weight.shape) and s[1:] == weight.shape[1:] for s in shapes)
        if not fits or sum(s[0] for s in shapes) != weight.shape[0]:
            raise CheckpointError(
                f"wrong shape of {' + '.join(weight.sources)}", got=shapes, expected=list(weight.shape)
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
