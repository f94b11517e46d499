"""Clients that ask for one answer after the other, all at once; nothing but the standard library.

In: prompts, tokens of each answer, how many clients. Out: token ids of every prompt, and when they came.
"""

import time


class Clients:
    """Prompts by client: client c asks for prompts c, c + clients, c + 2 clients, … of them.

    A model asks `following` for what a client wants next, and says `emit` for what came.
    """

    def __init__(self, prompts, tokens, clients):
        self.prompts, self.tokens = prompts, tokens
        self.count = min(clients, len(prompts))
        self._waiting = [list(range(client, len(prompts), self.count))[::-1] for client in range(self.count)]
        self._token_ids = [[] for _ in prompts]
        self._seconds = [[] for _ in prompts]
        self._asked = [0.0] * len(prompts)
        self._begin = time.perf_counter()

    def _now(self):
        return round(time.perf_counter() - self._begin, 6)

    def following(self, client):
        """The number of the prompt that a client asks for now; None where it has no more."""
        if not self._waiting[client]:
            return None
        number = self._waiting[client].pop()
        self._asked[number] = self._now()
        return number

    def emit(self, number, new):
        """Tokens of a prompt have come. Returns whether these were the last of them."""
        now = self._now()
        self._token_ids[number].extend(map(int, new))
        self._seconds[number].extend(now for _ in new)
        return len(self._token_ids[number]) >= self.tokens[number]

    def found(self):
        """Of each prompt: its token ids, when they came, and when it was asked for, in seconds. Raises
        RuntimeError where they are not as many as asked for.
        """
        if (lengths := [len(ids) for ids in self._token_ids]) != self.tokens:
            raise RuntimeError(f"{lengths} tokens where {self.tokens} were asked for")
        return {"token_ids": self._token_ids, "seconds": self._seconds, "asked": self._asked}
