"""A checkpoint, whatever it was read from.

In: what a source found: the model's blueprint, its tensors by Hugging Face's names, which of them
our weights are made of, and what lies beside them. Out: `Checkpoint`. No tensor is read here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from firp.export.families.names import PLAIN, Layout
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.errors import CheckpointError
from firp.runtime.loop.text import parse_tokenizer

LEAST_CONTEXT = 16  # tokens: a prompt, a tree of drafts and some steps; shorter ones are mistakes
TOKENIZER = "tokenizer.json"
COMPANIONS = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja")  # that a bundle takes along


class Weight(NamedTuple):
    """One tensor of the bundle: checkpoint tensors joined along their first axis, so that one GEMM
    serves them, or one tensor in another layout.
    """

    name: str  # ours (firp.runtime.bundle.weight_table)
    shape: tuple[int, ...]
    sources: tuple[str, ...]  # none: it is 1 everywhere
    layout: Layout = PLAIN


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its blueprint, its tensors, and which of them each weight is made of."""

    path: Path
    config: ModelConfig
    weights: tuple[Weight, ...]  # in the order of the bundle's file
    tensors: dict[str, TensorRecord]  # by Hugging Face's names
    eos_token_ids: tuple[int, ...]
    raw_config: dict[str, Any]  # what config.json says, or would say
    companions: Mapping[str, Path | bytes]  # those of COMPANIONS that there are: a file, or its content

    @property
    def name(self) -> str:
        """The file name of what it was read from, links followed."""
        return self.path.resolve().name

    def companion(self, name: str) -> bytes | None:
        """The content of one of COMPANIONS; None where the model has none. Raises CheckpointError."""
        found = self.companions.get(name)
        if not isinstance(found, Path):
            return found
        try:
            return found.read_bytes()
        except OSError as error:
            raise CheckpointError("cannot read", got=f"'{found}': {error.strerror}") from error

    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where it has none. Raises BundleError when it does not load."""
        content = self.companion(TOKENIZER)
        return None if content is None else parse_tokenizer(content, str(self.path / TOKENIZER))

    def with_context(self, tokens: int) -> "Checkpoint":
        """The same model for shorter texts, whose rope tables are shorter. Raises CheckpointError."""
        context = self.config.max_position_embeddings
        if self.config.positions.learned:
            raise CheckpointError(
                "the positions of this model are weights",
                got=f"a context of {tokens} tokens",
                expected=context,
            )
        if not LEAST_CONTEXT <= tokens <= context:
            raise CheckpointError(
                "context out of range",
                got=tokens,
                expected=f"{LEAST_CONTEXT} to {context}, what the model takes",
            )
        return replace(self, config=replace(self.config, max_position_embeddings=tokens))

    def prediction_layer(self, requested: int | None) -> int:
        """The layer to split at: the requested one, or three quarters of the way up. Raises
        CheckpointError.
        """
        layers = self.config.num_hidden_layers
        if requested is not None and not 1 <= requested < layers:
            raise CheckpointError(
                "prediction layer out of range", got=requested, expected=f"1 to {layers - 1}"
            )
        return max(1, layers * 3 // 4) if requested is None else requested


def transformers_config(raw: dict[str, Any]) -> Any:
    """transformers' configuration of a model, from what config.json says. Raises whatever its
    validation raises.
    """
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[raw["model_type"]].from_dict(_with_infinities(raw))


def _with_infinities(value: Any) -> Any:
    """JSON data whose infinite numbers are numbers: transformers writes them as an object."""
    if isinstance(value, list):
        return [_with_infinities(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _with_infinities(item) for key, item in value.items()}
