"""A conversation with a person: what is typed, what is answered, and the words that begin with a
slash.

In: messages from a `LineInput`. Out: answers on stdout as they come, everything else on stderr.
"""

import re
import signal

from firp.runtime.chat.conversation import Conversation
from firp.runtime.console.interrupts import cancel_on_interrupt
from firp.runtime.console.line_input import LineInput
from firp.runtime.console.progress import messages
from firp.runtime.console.step_marks import StepMarks
from firp.runtime.errors import FirpError

_WORD = re.compile(r"/(\w*)\s*")
_HELP = """/reset  begin a new conversation
/undo   take the last turn back
/stats  what this one has cost
/exit   end the conversation, as /quit and Ctrl-D do
/help   these lines
A line that ends in a backslash goes on in the next; what is pasted is one message.
Ctrl-C ends an answer."""


class Talk:
    """Turns until the input ends. context: tokens that the model reads at most; show_drafts: mark
    the tokens of one step.
    """

    def __init__(self, conversation: Conversation, context: int, typed: LineInput, show_drafts: bool):
        self._conversation = conversation
        self._context = context
        self._typed = typed
        self._show_drafts = show_drafts
        self._ended = False
        self._words = {
            "reset": self._reset,
            "undo": self._undo,
            "stats": self._stats,
            "exit": self._end,
            "quit": self._end,
            "help": lambda: messages.print(_HELP),
        }

    def run(self) -> None:
        """Answer until the input ends, or a word ends it. Raises FirpError where an answer fails and
        nobody is there to mend it.
        """
        if self._typed.interactive:
            messages.print("/help lists what can be done, /exit ends the conversation", style="dim")
        while not self._ended and (text := self._next()) is not None:
            try:
                self._take(text)
            except KeyboardInterrupt:  # a second Ctrl-C; the answer stays as far as it came
                if not self._typed.interactive:
                    raise
                print()

    def _next(self) -> str | None:
        while True:
            try:
                return self._typed.read("> ")
            except EOFError:
                if self._typed.interactive:
                    print()
                return None
            except KeyboardInterrupt:
                if not self._typed.interactive:
                    raise
                print()
                messages.print("Ctrl-D ends the conversation", style="dim")

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        if word := _WORD.fullmatch(text):
            act = self._words.get(word[1])
            if act is None:
                messages.print(f"unknown word {word[0].strip()}; /help lists those there are")
            else:
                act()
            return
        try:
            self._answer(text)
        except FirpError as error:
            if not self._typed.interactive:
                raise
            messages.print(f"error: {error}")

    def _answer(self, text: str) -> None:
        write = StepMarks().write if self._show_drafts else lambda text: print(text, end="", flush=True)
        with cancel_on_interrupt((signal.SIGINT,)) as cancel:
            reason = None
            for chunk in self._conversation.send(text, cancel):
                write(chunk.text)
                reason = chunk.finish_reason
        print()
        if reason == "cancelled" and not self._typed.interactive:
            raise KeyboardInterrupt
        if reason == "length":
            messages.print("cut: as long as --max-new-tokens or the context allows", style="dim")

    def _end(self) -> None:
        self._ended = True

    def _reset(self) -> None:
        self._conversation.reset()
        messages.print("a new conversation", style="dim")

    def _undo(self) -> None:
        self._conversation.rewind()
        messages.print(f"{len(self._conversation.messages)} messages are left", style="dim")

    def _stats(self) -> None:
        stats = self._conversation.stats
        cached = f"{self._conversation.tokens} of {self._context} tokens"
        messages.print(f"{self._conversation.turns} turns, {cached} of the context in use")
        messages.print(f"{stats.prompt_tokens} prompt tokens, {stats.reused_tokens} of them from the cache")
        rate = f"{stats.tokens_per_step:.2f} tokens/step, {stats.tokens_per_s:.0f} tokens/s"
        messages.print(f"{stats.decoded_tokens} tokens in {stats.steps} steps, {rate}")
