"""Single tokens as bytes and as text, for log-probabilities.

In: a tokenizer, token ids. Out: the bytes that each token writes; alone they may be part of a
character.
"""

import json
import re

from tokenizers import Tokenizer

from firp.runtime.loop.byte_level import byte_of_character

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenText:
    """Bytes of the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        decoder = tokenizer.decoder
        self._byte_level = decoder is not None and "ByteLevel" in json.dumps(
            json.loads(decoder.__getstate__())
        )

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; of an added one its name, and nothing for an id without a token."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            return bytes(byte_of_character().get(character, 63) for character in piece)
        found = _BYTE.fullmatch(piece)
        return bytes([int(found[1], 16)]) if found else piece.replace("▁", " ").encode()

    def text_of(self, token: int) -> str:
        """The token as text; bytes that are no character alone come out as U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")
