"""The picker of one request: its processors, its grammar, then the pick.

In: logits [V] of a row, and the context of the token to pick. Out: the token, and its logprob. It
keeps counts and a grammar's state, so that no context is read twice; what it picks depends on its
arguments alone.
"""

import numpy as np

from firp.runtime.errors import FirpError
from firp.runtime.passes.request import Request
from firp.runtime.picking.context import Context
from firp.runtime.picking.logprobs import TokenLogprob, token_logprob
from firp.runtime.picking.pick import check_finite, pick
from firp.runtime.picking.processors import Processors


class Picker:
    """Picks the tokens of one request. needs_logits: whether it reads logits, or the token that a
    graph lists first will do; logprobs: how many of the best are listed with each token, None where
    nobody asks.
    """

    def __init__(self, request: Request):
        params = request.params
        self.params = params
        self.logprobs = params.logprobs
        self._processors = Processors(params, len(request.prompt), request.ends)
        self._walk = request.walk()
        self.needs_logits = (
            params.temperature > 0
            or self._processors.change
            or self._walk is not None
            or params.logprobs is not None
        )

    def __call__(self, logits: np.ndarray, position: int, context: Context) -> int:
        """The token at `position`, given the logits [V] of the row before it. Raises FirpError where
        logits are not finite, or no token may be picked.
        """
        return self.choose(self.processed(logits, context), position)

    def choose(self, logits: np.ndarray, position: int) -> int:
        """The token that processed logits [V] give."""
        return pick(logits, position, self.params)

    def processed(self, logits: np.ndarray, context: Context) -> np.ndarray:
        """Logits [V] after all processors; -inf where a token is forbidden."""
        if self._walk is None and not self._processors.change:
            return logits
        check_finite(logits)
        row = self._processors(logits, context)
        if self._walk:
            row = np.where(self._walk.allowed(context), row, np.float32(-np.inf))
        if row.max() == -np.inf:
            raise FirpError(
                "no token may be picked",
                got=f"position {context.position}, where params and grammar forbid every one",
                fix="allow an end token, or more tokens",
            )
        return row

    def complete(self, context: Context) -> bool:
        """Whether a grammar lets nothing follow."""
        return self._walk is not None and self._walk.complete(context)

    def logprob(self, logits: np.ndarray, token: int) -> TokenLogprob:
        """The logprob of the token that was picked from these logits [V], as the model gave them."""
        return token_logprob(logits, token, self.logprobs or 0)
