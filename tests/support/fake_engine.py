"""An engine that says what a test wants, when it wants: for servers that are busy, dead, or slow."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

from firp.runtime.chat.encoder import ChatEncoder
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.errors import EngineBusyError
from firp.runtime.loop.generation import Chunk, Generation, Stats
from firp.runtime.loop.text import encode_text
from firp.runtime.scheduling.statistics import EngineStats

from .chat_bundles import TEMPLATE, small_tokenizer

# a template of the Hermes family
TOOL_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: "
    "{{ m.content or m.tool_calls[0].function.arguments.city }}{% endfor %}"
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}a: {% endif %}"
)
_TICK_S = 0.001


class FakeHandle:
    """Emits pieces, a chunk each, after `pace_s`; ends as it is told, or cancelled."""

    def __init__(self, engine, prompt, params, request_id):
        self.id = request_id
        self.params = params
        self.prompt = prompt
        self._engine = engine
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    def __iter__(self):
        for chunk in self._emitted():
            if chunk is None:
                time.sleep(_TICK_S)
            else:
                yield chunk

    async def __aiter__(self):
        for chunk in self._emitted():
            if chunk is None:
                await asyncio.sleep(_TICK_S)
            else:
                yield chunk

    def _emitted(self):
        """Chunks, and None where time passes."""
        ids = []
        engine = self._engine
        for piece in engine.says(self.params):
            if engine.error:
                raise engine.error
            end = time.monotonic() + engine.pace_s
            while time.monotonic() < end and not self.cancelled:
                yield None
            if self.cancelled:
                yield Chunk([], "", "cancelled", self._stats(ids))
                return
            fresh = engine.tokenizer.encode(piece[:100], add_special_tokens=False).ids
            ids += fresh
            yield Chunk(fresh, piece, None, self._stats(ids))
        yield Chunk([], "", engine.reason, self._stats(ids))

    def _stats(self, ids):
        return Stats(
            len(self.prompt),
            reused_tokens=2,
            steps=1,
            decoded_tokens=len(ids),
            accepted_by_drafter={"firp": [3, 1]},
        )

    async def wait(self):
        chunks = [chunk async for chunk in self]
        ids = [token for chunk in chunks for token in chunk.token_ids]
        text = "".join(chunk.text for chunk in chunks)
        return Generation(len(self.prompt), ids, text, chunks[-1].finish_reason, chunks[-1].stats)


class FakeEngine:
    """Chats with the characters of the small models; `busy`: raised at submit; `error`: by handles."""

    def __init__(self, says=("Hel", "lo."), template=TEMPLATE, context=256):
        self.bundle = SimpleNamespace(path=Path(__file__).parent)
        self.tokenizer = small_tokenizer()
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        self.chat_encoder = ChatEncoder(ChatTemplate(template, tokens), self.tokenizer)
        self.context = context
        self._says = says
        self.submitted = []
        self.closed = False
        self.reset()

    def reset(self):
        """As it was when it was made."""
        self.says = lambda params: self._says
        self.reason = "stop"
        self.pace_s = 0.001
        self.busy = self.error = None
        self.healthy = True
        self.refusals = 0  # requests that find the queue full

    def encode(self, prompt):
        return encode_text(self.tokenizer, prompt)

    def stats(self):
        return EngineStats(submitted=len(self.submitted))

    def submit(self, prompt, params, *, plain=False, deadline_s=None, request_id=None):
        if self.refusals:
            self.refusals -= 1
            raise EngineBusyError("the queue is full")
        if self.busy:
            raise self.busy
        handle = FakeHandle(self, prompt, params, request_id)
        self.submitted.append(SimpleNamespace(handle=handle, plain=plain, deadline_s=deadline_s))
        return handle

    def close(self):
        self.closed = True
