"""What begins late: windows, growth of queries and the like, that no prompt of a verification reaches.

In: an engine, and transformers' configuration of the model, whatever the recipe made of it. Out: a `Late`
for each place where something may begin. The tokens before it are not computed: keys and values are made
up for them, and both sides get the same ones, so a window of 4,096 tokens costs no more than a few rows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from firp.export.verify.rows import Sample, random_sample
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.engine import Engine

# fields of configurations that name a number of tokens after which a model computes otherwise
_FIELDS = re.compile(r"window|window_size|chunk_size|original_max_position_embeddings")
_PROMPT, _TREE = 8, 4  # rows of a sample; each path through its tree is a sequence of its own
_BEFORE = 4  # rows of the prompt before the place
_ROOM = 16  # tokens that a sample takes at most
# Values of the oldest slots, which windows hide first, are as many times larger that together they weigh
# as much as those of all others: one more or less that a row sees must show.
_OLDEST, _OF = 64, 16
_GIB = 1 << 30


@dataclass(frozen=True)
class Late:
    """Rows on both sides of a place where something may begin."""

    begins: int  # the position of the first row of which it may be true
    cached: int  # P: tokens before the rows
    shape: tuple[int, ...]  # [2, Hkv, P, Dh], of the keys and values of a layer
    sample: Sample
    hindrance: str | None  # why the rows cannot be compared

    def past(self) -> np.ndarray:
        """Keys and values of every layer, f32: numbers that all float types have, so that none rounds
        them.
        """
        past = (np.random.default_rng(self.cached).integers(-16, 17, self.shape) / 16).astype(np.float32)
        past[1, :, :_OLDEST] *= 2.0 ** max(0, (self.cached // _OF).bit_length() - 1)
        return past


def late_begins(engine: Engine, config: Any, reached: int) -> Iterator[Late]:
    """What may begin within the context, after so many tokens. config: transformers' own."""
    model = engine.model
    context = model.max_position_embeddings
    for begins in sorted({*_named(config.to_dict()), *_described(model)}):
        if reached < begins < context:
            cached = min(begins - _BEFORE, context - _ROOM)
            tokens = np.random.default_rng(cached).integers(0, model.vocab_size, _PROMPT).tolist()
            sample = random_sample(tokens, model.vocab_size, context - cached, _TREE)
            shape = (2, model.attention.num_key_value_heads, cached, model.attention.head_dim)
            yield Late(begins, cached, shape, sample, _hindrance(engine, shape))


def _named(value: Any, matches: bool = False) -> Iterator[int]:
    """Numbers of such fields, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _named(inner, bool(_FIELDS.fullmatch(str(name).removeprefix("sliding_"))))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner, matches)
    elif matches and type(value) is int:
        yield value


def _described(model: ModelConfig) -> Iterator[int]:
    """Those of the bundle's description."""
    yield from (layer.window for layer in model.layers if layer.window)
    if model.attention.growth:
        yield model.attention.growth.length


def _hindrance(engine: Engine, shape: tuple[int, ...]) -> str | None:
    """Why keys and values of such a shape are not made up: the cache may be as large as the weights."""
    if engine.model.attention.latent:
        return "keys are latent"
    needed = 4 * int(np.prod(shape)) * engine.model.num_hidden_layers
    if needed > max(_GIB, engine.manifest.files["model.safetensors"].size):
        return f"a cache of {needed / _GIB:.1f} GiB"
    return None
