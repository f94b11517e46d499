"""Steps as a stream of text: what each adds, and why it ended.

In: the steps of a request. Out: `Chunk`s; the last one closes the stream.
"""

import threading
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from firp.runtime.loop.decode import Step
from firp.runtime.loop.generation import Chunk, Stats
from firp.runtime.loop.text import TextStream
from firp.runtime.passes.request import Request


def stream_chunks(
    request: Request,
    steps: Iterable[Step],
    tokenizer: Tokenizer | None,
    cancel: threading.Event | None = None,
) -> Iterator[Chunk]:
    """Yield what each step adds, then a closing chunk with the finish reason. tokenizer: None where
    there is none, and so no text; cancel: when set, the stream closes after the current step.
    """
    text = TextStream(tokenizer, request.params.stop, list(request.prompt)) if tokenizer else None
    stats = Stats(prompt_tokens=len(request.prompt))
    reason = None
    for step in steps:
        stats = stats.after(step)
        tokens = []
        released = ""
        for token in step.tokens:
            tokens.append(token)
            released += text.push(token) if text else ""
            if text and text.stopped:
                break
        logprobs = step.logprobs and step.logprobs[: len(tokens)]
        yield Chunk(tokens, released if text else None, None, stats, logprobs, step.prompt_logprobs)
        reason = "stop" if text and text.stopped else step.finish_reason
        if reason is None and cancel is not None and cancel.is_set():
            reason = "cancelled"
        if reason:
            break
    rest = text.finish() if text else None
    if text and text.stopped:
        reason = "stop"  # a stop string that only the held-back text completed
    yield Chunk([], rest, reason, stats)
