"""Steps as a stream of text: what each adds, and why it ended.

In: the steps of a request. Out: `Chunk`s; the last one closes the stream.
"""

from tokenizers import Tokenizer

from firp.runtime.loop.decode import Step
from firp.runtime.loop.generation import Chunk, Stats
from firp.runtime.loop.text import TextStream
from firp.runtime.passes.request import Request


class ChunkStream:
    """Chunks of one request, step by step. tokenizer: None where there is none, and so no text."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        prompt = list(request.prompt)
        self._text = TextStream(tokenizer, request.params.stop, prompt) if tokenizer else None
        self.stats = Stats(prompt_tokens=len(prompt))
        self.finish_reason: str | None = None  # once the text has come to its end: "stop" or "length"

    def add(self, step: Step) -> Chunk:
        """The chunk of a step."""
        self.stats = self.stats.after(step)
        text = self._text
        tokens = []
        released = ""
        for token in step.tokens:
            tokens.append(token)
            released += text.push(token) if text else ""
            if text and text.stopped:
                break
        self.finish_reason = "stop" if text and text.stopped else step.finish_reason
        logprobs = step.logprobs and step.logprobs[: len(tokens)]
        return Chunk(tokens, released if text else None, None, self.stats, logprobs, step.prompt_logprobs)

    def close(self, reason: str | None = None) -> Chunk:
        """The closing chunk. reason: why it ends where the text did not come to its end."""
        rest = self._text.finish() if self._text else None
        if self._text and self._text.stopped:
            self.finish_reason = "stop"  # a stop string that only the held-back text completed
        return Chunk([], rest, self.finish_reason or reason, self.stats)
