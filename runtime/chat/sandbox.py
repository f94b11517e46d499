"""Jinja as chat templates know it, in a sandbox.

In: the text of a template, and the values that it may read. Out: text that is what transformers'
`apply_chat_template` gives. Attributes of Python objects are out of reach (Jinja's own sandbox);
everything that makes text, lists or turns of a loop counts against a `Meter`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from firp.runtime.chat.counting import (
    INSERTED,
    OPERATORS,
    Counting,
    check_format,
    check_method,
    count_made,
    count_output,
    counted,
)
from firp.runtime.chat.meter import spend

_NOT_OFFERED = ("batch", "pprint", "slice", "urlize", "wordwrap", "xmlattr")  # filters that may grow


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates: `trim_blocks`, `lstrip_blocks`, loop controls, `generation` blocks,
    and the functions and filters that transformers gives them.
    """

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlocks, loopcontrols],
            optimized=False,  # nothing is computed while it is compiled
            finalize=count_output,
        )
        for name in _NOT_OFFERED:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters["tojson"] = _tojson
        self.filters = {name: counted(name, function) for name, function in self.filters.items()} | INSERTED
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Counting().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute, where the result is of a size that is allowed."""
        OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; methods of texts are looked at first."""
        spend()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | int | bytes | list | dict):
            args = check_method(owner, __obj.__name__, args, kwargs)
        return count_made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox, without widths that make gigabytes."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def bounded(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, "{", (args, kwargs))
            return wrapped(*args, **kwargs)

        return bounded


class GenerationBlocks(Extension):
    """`{% generation %}`: marks what the assistant wrote; as text it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.CallBlock:
        """A call block, so that what is set inside stays inside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _TemplateDict:
    """`dict` for templates: calls alone, no attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace` for templates: names that begin with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any):
        self, *values = args
        given = dict(*values, **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a name with an underscore first: {name!r}")


def plain_data(value: Any) -> Any:
    """A copy made of JSON types alone, so that a template reaches no method of another object.
    Raises TypeError for anything else.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    for kind in (str, int, float):  # their subclasses have more methods
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    raise TypeError(f"a {type(value).__name__} in messages or tools")
