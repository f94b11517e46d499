"""The error that a user's mistake gets: one line of what, got, expected and how to fix it. Anything
else is a bug. What libraries in other languages raise becomes such a line at one guard,
`foreign_errors`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FirpError(Exception):
    """A mistake that the user can mend. `str(error)` is one line: what | got X, expected Y. Fix:
    Z.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None):
        self.what = what
        self.got = got
        self.expected = expected
        self.fix = fix
        found = [
            f"{word} {_short(value)}"
            for word, value in (("got", got), ("expected", expected))
            if value is not None
        ]
        line = _short(what) + (" | " + ", ".join(found) if found else "")
        if fix:
            line += f". Fix: {fix}"
        super().__init__(" ".join(_shown(line).split()))

    def with_fix(self, kind: "type[FirpError]", fix: str) -> "FirpError":
        """The same mistake as an error of another kind, for a caller who knows how to mend it."""
        return kind(self.what, got=self.got, expected=self.expected, fix=fix)


_MOST = 400  # characters of one part of a message


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 4 :]}"


def _shown(line: str) -> str:
    """A line without what a terminal would obey, and that every stream can encode."""
    return "".join(char if char.isprintable() or char.isspace() else ascii(char)[1:-1] for char in line)


class CheckpointError(FirpError):
    """The model, or the predictor directory, cannot be used."""


class BundleError(FirpError):
    """The bundle cannot be read, or is not whole."""


class PromptError(FirpError):
    """A prompt, or a file of prompts, cannot be used."""


class ContextFullError(PromptError):
    """A prompt fills the context, so that no token can follow it."""


class SessionBusyError(FirpError):
    """A second caller entered a session that is already decoding."""


class CheckFailedError(FirpError):
    """A verification ran and found a difference beyond its limit."""


class GrammarError(FirpError):
    """An output that a grammar, which compiled, cannot go on with: no text meets it, or none within the
    limits of the grammar library.
    """


class EngineBusyError(FirpError):
    """The engine's queue is full; try again later."""


class EngineClosedError(FirpError):
    """The engine was closed, or its thread has died."""


class RequestTooLargeError(FirpError):
    """A request needs more memory than the engine may ever use."""


@contextmanager
def foreign_errors(
    make: Callable[[str], FirpError], words: Callable[[BaseException], str] | None = None
) -> Iterator[None]:
    """Turn what ONNX Runtime, safetensors, tokenizers and llguidance raise into one error, made of its
    reason: their exceptions share no base class, and a panic of Rust code is not even an Exception.
    words: what makes the reason of an error; None: its first line.
    """
    try:
        yield
    except (FirpError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise make((words or reason)(error)) from error


def reason(error: BaseException) -> str:
    """The first line of an error, cut to what one line has room for."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__
