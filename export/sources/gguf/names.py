"""Tensors of a GGUF file under Hugging Face's names.

In: tensors by GGUF's names, and the weights that the family has. Out: the same records by Hugging Face's
names, marked where llama.cpp's converter changed them. The package `gguf` knows which tensor is which.
"""

import re
from collections.abc import Iterator
from typing import Any

from firp.export.families.names import Names
from firp.export.sources.gguf.architectures import GgufArchitecture
from firp.export.sources.gguf.config import CONFIG_TENSORS
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.weight_table import weight_shapes

# experts, or the norms of heads, which a file keeps in one tensor: "experts.3.", "norms.3."
_PART = re.compile(r"\.(experts|norms)\.(\d+)(?=\.)")


def renamed(
    tensors: dict[str, TensorRecord],
    architecture: str,
    row: GgufArchitecture,
    names: Names,
    config: ModelConfig,
) -> dict[str, TensorRecord]:
    """Tensors by Hugging Face's names; one that has none there keeps its own. architecture: GGUF's name.

    Where llama.cpp computes rotary embedding on neighbouring rows, as Meta wrote Llama, and Hugging
    Face pairs row i with row i + head_dim / 2, its converter moved the rows of queries and keys.
    """
    theirs = _tensor_names(architecture, config.num_hidden_layers)
    heads = {}
    if row.paired:
        heads = {"attn_q": config.attention.num_heads, "attn_k": config.attention.num_key_value_heads}
    found, used = {}, set(CONFIG_TENSORS)
    for source in _sources(names, config):
        part = _PART.search(source)
        together = source.replace(part[0], ".experts" if part[1] == "experts" else "") if part else source
        name = theirs.get_name(together, try_suffixes=(".weight", ".bias"))
        record = tensors.get(name)
        if record is None:
            continue
        module = name.split(".")[-2]
        if part:
            parts = record.apart(record.shape[0]) if record.shape else []
            if int(part[2]) >= len(parts):
                continue
            record = parts[int(part[2])]
        one_more = row.one_more and source.endswith("norm.weight")
        found[source] = record._replace(paired_heads=heads.get(module), one_more=one_more)
        used.add(name)
    return found | {name: record for name, record in tensors.items() if name not in used}


def _sources(names: Names, config: ModelConfig) -> Iterator[str]:
    """Tensors that a checkpoint of this family may have: biases of all, and a head."""
    for weight in (*weight_shapes(config), "lm_head.weight"):
        yield from names.place(weight, config).sources
        yield from names.place(f"{weight.removesuffix('.weight')}.bias", config).sources


def _tensor_names(architecture: str, layers: int) -> Any:
    import gguf

    (known,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(known, layers)
