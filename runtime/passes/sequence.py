"""One request being decoded: the tokens that are decided, and whether more may come.

In: a `Request` and the capacity of the session that decodes it. Out: its state, which the loop
extends after every pass. All decided tokens but the last one, the root, have keys and values in the
cache.
"""

from firp.runtime.errors import PromptError
from firp.runtime.passes.request import Request


class Sequence:
    """Tokens of one request in a session. Raises PromptError when the prompt does not fit the
    session.
    """

    def __init__(self, request: Request, capacity: int):
        room = capacity + 1 - len(request.prompt)  # the last token needs no slot
        if room < 1:
            raise PromptError(
                "prompt longer than the session",
                got=f"{len(request.prompt)} tokens",
                expected=f"at most {capacity}",
                fix="shorten the prompt, or make a larger session",
            )
        self.request = request
        self.tokens = list(request.prompt)
        self._limit = len(request.prompt) + min(request.max_tokens, room)
        self._ended = False

    @property
    def root(self) -> int:
        """The decided token that has no keys and values yet."""
        return self.tokens[-1]

    @property
    def cached(self) -> int:
        """P: tokens with keys and values, once the prompt is prefilled; the root's position too."""
        return len(self.tokens) - 1

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self._limit - len(self.tokens)

    @property
    def finish_reason(self) -> str | None:
        """ "stop" after a token that ends the text, "length" when nothing more fits, else None."""
        if self._ended:
            return "stop"
        return None if self.remaining else "length"

    def extend(self, tokens: list[int], ended: bool = False) -> None:
        """Append what a pass emitted. ended: whether the last of them ends the text."""
        self.tokens += tokens
        self._ended = ended
