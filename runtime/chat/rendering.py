"""Templates compiled once, and rendered within limits.

In: the text of a template; the values that it reads. Out: text, or one line for whatever goes wrong
in a program that comes from a file.
"""

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from firp.runtime.chat.meter import MAX_TEXT, TemplateLimitError, metered
from firp.runtime.chat.sandbox import ChatEnvironment, plain_data
from firp.runtime.errors import BundleError, PromptError

_FILE = "<template>"  # as Jinja calls a template without a file in tracebacks


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from values to text. Raises BundleError for what is no template; the function
    raises PromptError for values that the template refuses, or that it does not end with.
    """
    try:
        with metered():
            template = ChatEnvironment().from_string(source)
    except TemplateSyntaxError as error:
        raise BundleError("bad chat template", got=f"line {error.lineno}: {error.message:.200}") from error
    except Exception as error:  # Python's own compiler, on what Jinja made of it
        raise BundleError("bad chat template", got=f"{error!s:.200}" or type(error).__name__) from error
    return functools.partial(_render, template)


def _render(template: Template, values: Mapping[str, Any]) -> str:
    pieces = []
    size = 0
    try:
        with metered():
            for piece in template.generate(**{name: plain_data(value) for name, value in values.items()}):
                size += len(piece)
                if size > MAX_TEXT:
                    raise TemplateLimitError(f"more than {MAX_TEXT} characters of output")
                pieces.append(piece)
    except Exception as error:  # a template is a program of its own
        raise PromptError(_WHAT.get(type(error), "the chat template fails"), got=_reason(error)) from error
    return "".join(pieces)


_WHAT = {
    TemplateError: "the chat template refuses these messages",  # by raise_exception
    SecurityError: "the chat template reaches for what it must not",
    TemplateLimitError: "the chat template goes beyond its limits",
    RecursionError: "the chat template goes beyond its limits",
}


def _reason(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
    where = f"line {frames[-1].lineno}: " if frames and type(error) is not TemplateError else ""
    return where + (f"{error!s:.200}" or type(error).__name__)
