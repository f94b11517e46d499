"""Texts and token ids for a model, by its own tokenizer.

In: a checkpoint, prompts. Out: lists of token ids that the model has embeddings for, or a
FirpError.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer

from firp.export.sources.checkpoint import TOKENIZER, Checkpoint
from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.chat.messages import is_messages
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.engine import Prompt
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.loop.text import encode_text


def model_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a model. Raises CheckpointError where it has none."""
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise CheckpointError(
            "the model has no tokenizer", got=f"'{checkpoint.path}' without {TOKENIZER}", fix="add it"
        )
    return tokenizer


def encode_prompts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, chat: ChatTemplate | None
) -> list[list[int]]:
    """Token ids of every prompt: of text, of messages with what begins an answer; ids stay as they
    are. chat: renders messages; None where the model has no template. Raises FirpError for text
    that is not Unicode, and for messages that cannot be rendered.
    """
    return [_encode(prompt, tokenizer, chat) for prompt in prompts]


def _encode(prompt: Prompt, tokenizer: Tokenizer, chat: ChatTemplate | None) -> list[int]:
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt)
    if not is_messages(prompt):
        return list(prompt)
    if chat is None:
        fix = "give texts, or a model with a chat_template"
        raise FirpError("the model has no chat template", got="a prompt with messages", fix=fix)
    return ChatEncoder(chat, tokenizer).encode(prompt)


def check_ids(texts: Iterable[list[int]], vocab_size: int) -> None:
    """Raises FirpError for a token that the model has no embedding for."""
    for ids in texts:
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise FirpError(
                "token id out of range", got=f"{min(ids)} to {max(ids)}", expected=f"0 to {vocab_size - 1}"
            )
