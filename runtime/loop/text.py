"""Text around the token loop: prompts to token ids, streamed text out, stop strings.

In: a tokenizer file, text; token ids one at a time. Out: token ids; text that never holds half a
character or a stop string.
"""

from pathlib import Path

from tokenizers import Tokenizer

from firp.runtime.errors import BundleError, PromptError, foreign_errors

_UNFINISHED = "�"  # what a tokenizer decodes an incomplete UTF-8 sequence to
_PENDING_TOKENS = 64  # without a character that is complete, before text is let go as it is
_CHARACTER_TOKENS = 4  # a character has at most so many bytes, and a token has at least one
_CONTEXT_TOKENS = 8  # of the prompt, decoded before the first new token


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises BundleError when the file is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError("tokenizer does not load", got=f"'{path}': {error.strerror}") from error
    return parse_tokenizer(content, str(path))


def parse_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json holds. where: its place, for errors. Raises BundleError when
    it holds none.
    """
    with foreign_errors(lambda reason: BundleError("tokenizer does not load", got=f"'{where}': {reason}")):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()  # what the file was saved with would cut prompts silently
    tokenizer.no_padding()
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text. add_special_tokens: those that the tokenizer puts around a text, such as
    BOS. Raises PromptError when it is no Unicode, or the tokenizer fails on it.
    """
    check_text(text)
    with foreign_errors(lambda reason: PromptError("the tokenizer fails on this prompt", got=reason)):
        # as a batch, since other threads run beside that: a text of megabytes takes seconds
        return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of several texts, without special tokens around them. Raises PromptError, as
    `encode_text` does.
    """
    for text in texts:
        check_text(text)
    with foreign_errors(lambda reason: PromptError("the tokenizer fails on these texts", got=reason)):
        return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def check_text(text: str) -> str:
    """Raises PromptError for text that no tokenizer takes: half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            "prompt is not Unicode text", got=f"a lone surrogate at character {error.start}"
        ) from error
    return text


class TextStream:
    """Decodes tokens one at a time; `push` returns the text that is certain by now, `finish` the
    rest.

    The text is what the tokens add to that of the prompt, so that prompt and text join as the
    tokenizer would join them. A token can end inside a UTF-8 sequence, and a stop string can begin
    in one token and end in another: text that may still change is held back. Once a stop string is
    complete, `stopped` is true and the text ends right before it. Special tokens are no text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), prompt: list[int] | None = None):
        self._tokenizer = tokenizer
        self._stop = stop
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        self._ids = list((prompt or [])[-_CONTEXT_TOKENS:])
        # decoding starts at token `prefix`; text up to token `read` is out
        self._prefix, self._read = 0, len(self._ids)
        if self._decode(0, self._read).endswith(_UNFINISHED):  # the prompt ends inside a character
            self._prefix = self._read
        self._held = ""  # decoded, but maybe the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain by now."""
        content = self._tokenizer.id_to_token(token)
        if content is None or content in self._special:
            return ""
        self._ids.append(token)
        end = len(self._ids)
        text = self._decode(self._prefix, end)
        fresh = text[len(self._decode(self._prefix, self._read)) :]
        if not text.endswith(_UNFINISHED):
            if fresh:  # a token without text must not lose the space of the next
                self._prefix, self._read = self._read, end
                return self._release(fresh)
        else:
            certain = fresh.rstrip(_UNFINISHED)
            if self._find_stop(self._held + certain) is not None:
                return self._release(certain)
        return self._release(self._decided()) if end - self._read > _PENDING_TOKENS else ""

    def _decided(self) -> str:
        """The beginning of a long text that completes no character. Without it every token would be
        decoded again and again. It ends where both sides, decoded alone, are the text of the whole.
        """
        end = len(self._ids)
        whole = self._decode(self._prefix, end)
        known = len(self._decode(self._prefix, self._read))
        for cut in range(end - _CHARACTER_TOKENS, end - 2 * _CHARACTER_TOKENS, -1):
            before = self._decode(self._prefix, cut)
            if before + self._decode(cut, end) == whole:
                self._prefix = self._read = cut
                return before[known:]
        return ""

    def finish(self) -> str:
        """Text that is still held back; an incomplete character comes out as U+FFFD."""
        if self.stopped:
            return ""
        text = self._decode(self._prefix, len(self._ids))
        text = self._release(text[len(self._decode(self._prefix, self._read)) :])
        if not self.stopped:
            text = text + self._held
            self._held = ""
        return text

    def _decode(self, start: int, end: int) -> str:
        with foreign_errors(lambda reason: BundleError("the tokenizer does not decode", got=reason)):
            return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)

    def _find_stop(self, text: str) -> int | None:
        return min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)

    def _release(self, fresh: str) -> str:
        """Add text; return what cannot be part of a stop string any more."""
        text = self._held + fresh
        found = self._find_stop(text)
        if found is not None:
            self.stopped = True
            self._held = ""
            return text[:found]
        keep = max((self._begun(stop, text) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @staticmethod
    def _begun(stop: str, text: str) -> int:
        """Count the characters of a stop string that the text ends with; it does not hold it
        whole.
        """
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while start >= 0 and not stop.startswith(text[start:]):
            start = text.find(stop[0], start + 1)
        return len(text) - start if start >= 0 else 0
