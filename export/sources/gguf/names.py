"""Tensors of a GGUF file under Hugging Face's names.

In: tensors by GGUF's names, and the weights that the family has. Out: the same records by Hugging Face's
names, marked where llama.cpp's converter changed them. The package `gguf` knows which tensor is which, but
for those that the converter puts otherwise.
"""

import re
from collections.abc import Iterator
from typing import Any

from firp.export.families.names import Names
from firp.export.sources.gguf.architectures import GgufArchitecture
from firp.export.sources.gguf.arranged import Arranged
from firp.export.sources.gguf.config import CONFIG_TENSORS
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.weight_table import weight_shapes
from firp.runtime.errors import CheckpointError

# experts, or the norms of heads, which a file keeps in one tensor: "experts.3.", "norms.3."
_PART = re.compile(r"\.(experts|norms)\.(\d+)(?=\.)")
# "model.layers.2.mlp.experts.down_proj[3]": the layer, what a layer calls it, the expert
_OF_LAYER = re.compile(r"[a-z_.]+?\.(\d+)\.([^\[]+)(?:\[(\d+)\])?")


def renamed(
    tensors: dict[str, TensorRecord],
    architecture: str,
    row: GgufArchitecture,
    names: Names,
    config: ModelConfig,
    later: int,
) -> dict[str, TensorRecord]:
    """Tensors by Hugging Face's names; one that has none there keeps its own. architecture: GGUF's name.
    later: layers after the last, which predict tokens after the next.

    Where llama.cpp computes rotary embedding on neighbouring rows, as Meta wrote Llama, and Hugging
    Face pairs row i with row i + head_dim / 2, its converter moved the rows of queries and keys.
    """
    file = _File(tensors, architecture, config.num_hidden_layers, later)
    heads = {}
    if row.paired:
        heads = {"attn_q": config.attention.num_heads, "attn_k": config.attention.num_key_value_heads}
    found = {}
    for source in _sources(names, config):
        of_layer = _OF_LAYER.fullmatch(source)
        arranged = row.arranged.get(of_layer[2]) if of_layer else None
        kept = [f"blk.{of_layer[1]}.{module}" for module in arranged.modules] if arranged else []
        if kept and all(name in tensors for name in kept):
            parts = [file.part(name, of_layer[3]) for name in kept]
            if None not in parts:
                found[source] = _put(arranged, parts, config, kept)
            continue
        part = _PART.search(source)
        name = file.name_of(
            source.replace(part[0], ".experts" if part[1] == "experts" else "") if part else source
        )
        record = file.part(name, part and part[2])
        if record:
            one_more = row.one_more and source.endswith("norm.weight")
            found[source] = record._replace(paired_heads=heads.get(name.split(".")[-2]), one_more=one_more)
    return found | {name: record for name, record in tensors.items() if name not in file.used}


def _put(
    arranged: Arranged, parts: list[TensorRecord], config: ModelConfig, names: list[str]
) -> TensorRecord:
    """One of Hugging Face's tensors of those that the file keeps. Raises CheckpointError for shapes that
    make none.
    """
    try:
        record = arranged.make(parts, config)
        rows = 0 if record.woven else 1  # parts by turns have equally many
        if len({part.shape[rows:] for part in record.parts}) < 2:
            return record
    except (IndexError, ValueError, ZeroDivisionError):
        pass
    raise CheckpointError(f"wrong shape of {' + '.join(names)}", got=[part.shape for part in parts])


class _File:
    """The tensors of a file, and which of them were asked for."""

    def __init__(self, tensors: dict[str, TensorRecord], architecture: str, layers: int, later: int):
        import gguf

        (known,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        self._names: Any = gguf.get_tensor_name_map(known, layers)
        self._tensors = tensors
        self._apart: dict[str, list[TensorRecord]] = {}
        ignored = tuple(f"blk.{layer}." for layer in range(layers, layers + later))
        self.used = {*CONFIG_TENSORS, *(name for name in tensors if name.startswith(ignored))}

    def name_of(self, source: str) -> str | None:
        """GGUF's name of one of Hugging Face's tensors, which it knows with its beginning or without."""
        for name in (source, source.partition(".")[2]):
            if found := self._names.get_name(name, try_suffixes=(".weight", ".bias")):
                return found
        return None

    def part(self, name: str | None, index: str | None) -> TensorRecord | None:
        """A tensor, or what is one expert's or head's of it; None where the file has no such one."""
        record = self._tensors.get(name) if name else None
        if record is None:
            return None
        self.used.add(name)
        if index is None:
            return record
        if name not in self._apart:
            self._apart[name] = record.apart(record.shape[0]) if record.shape else []
        parts = self._apart[name]
        return parts[int(index)] if int(index) < len(parts) else None


def _sources(names: Names, config: ModelConfig) -> Iterator[str]:
    """Tensors that a checkpoint of this family may have: biases of all, and a head."""
    for weight in (*weight_shapes(config), "lm_head.weight"):
        yield from names.place(weight, config).sources
        yield from names.place(f"{weight.removesuffix('.weight')}.bias", config).sources
