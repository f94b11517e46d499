"""Texts and token ids for a model, by its own tokenizer.

In: a checkpoint, prompts. Out: lists of token ids that the model has embeddings for, or a
FirpError.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer

from firp.export.sources.checkpoint import TOKENIZER, Checkpoint
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.loop.text import check_text


def model_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a model. Raises CheckpointError where it has none."""
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise CheckpointError(
            "the model has no tokenizer", got=f"'{checkpoint.path}' without {TOKENIZER}", fix="add it"
        )
    return tokenizer


def encode_prompts(prompts: Iterable[str | list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of every prompt; one that is ids already stays as it is. Raises FirpError for text
    that is not Unicode.
    """
    return [
        tokenizer.encode(check_text(prompt)).ids if isinstance(prompt, str) else list(prompt)
        for prompt in prompts
    ]


def check_ids(texts: Iterable[list[int]], vocab_size: int) -> None:
    """Raises FirpError for a token that the model has no embedding for."""
    for ids in texts:
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise FirpError(
                "token id out of range", got=f"{min(ids)} to {max(ids)}", expected=f"0 to {vocab_size - 1}"
            )
