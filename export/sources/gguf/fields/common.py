"""What several architectures say alike.

In: the keys of a file, its tensors, and the fields that all families have. Out: fields of config.json.
"""

from collections.abc import Callable, Mapping
from typing import Any

from firp.export.sources.gguf.metadata import Metadata

Tensors = Mapping[str, Any]
Fields = dict[str, Any]
Further = Callable[[Metadata, Tensors, Fields], Fields]

WINDOW = "attention.sliding_window"
PERIOD = 4  # of every so many layers the last has another kind; llama.cpp knows it, its files do not say it
SLIDING, FULL = "sliding_attention", "full_attention"
SHARED_SIZE = "expert_shared_feed_forward_length"
_PATTERN = "attention.sliding_window_pattern"
_GATE = "expert_gating_func"
SOFTMAX, SIGMOID = 1, 2  # of experts' scores, by llama.cpp's numbers


def rms(data: Metadata, tensors: Tensors, c: Fields) -> Fields:
    """The epsilon of norms."""
    return {"rms_norm_eps": data.number("attention.layer_norm_rms_epsilon")}


def epsilon(data: Metadata) -> float:
    """Of layer norms."""
    return data.number("attention.layer_norm_epsilon")


def optional(data: Metadata, key: str) -> float | None:
    """A number that not every file has."""
    return data.number(key) if data.has(key) else None


def expert_count(data: Metadata, tensors: Tensors, first: int = 0) -> int:
    """How many there are: nothing is made of a number that no tensor has. first: layer that has some."""
    router = tensors.get(f"blk.{first}.ffn_gate_inp.weight")
    rows = router.shape[0] if router and router.shape[1:] == (data.integer("embedding_length"),) else 0
    if data.integer("expert_count") != rows:
        raise data.bad("expert_count", data.integer("expert_count"), f"{rows}, the rows of the router")
    return rows


def gate(data: Metadata, default: int, *known: int) -> int:
    """Which function of a router's output are the scores. Raises CheckpointError for one not known."""
    found = data.integer(_GATE, default)
    if found not in (known or (default,)):
        names = {SOFTMAX: "1 (softmax)", SIGMOID: "2 (sigmoid)"}
        raise data.bad(_GATE, found, " or ".join(names[each] for each in known or (default,)))
    return found


def same(data: Metadata, key: str, size: int) -> None:
    """Raises CheckpointError for a size that a file says again, and says otherwise."""
    if data.integer(key, size) != size:
        raise data.bad(key, data.integer(key), size)


def kinds(data: Metadata, c: Fields, period: int) -> list[str]:
    """The kind of each layer: as a file says it, or every so many layers one without a window."""
    layers = c["num_hidden_layers"]
    windowed = data.flags(_PATTERN, [(index + 1) % period != 0 for index in range(layers)])
    if len(windowed) != layers:
        raise data.bad(_PATTERN, len(windowed), f"{layers}, one of each layer")
    return [SLIDING if each else FULL for each in windowed]
