"""Counting what a template makes, wherever it makes it: filters, methods, operators, loops, output.

In: values of a template. Out: the same, after their size was counted (`meter`).
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

from firp.runtime.chat.meter import ELEMENT, MAX_TEXT, TemplateLimitError, check_width, measure, spend

_LAZY = {"attr", "count", "d", "default", "first", "last", "length", "map", "random", "reject", "rejectattr"}
_LAZY |= {"select", "selectattr", "max", "min"}
_COPYING = {"dictsort", "groupby", "items", "list", "reverse", "sort", "unique"}
_NO_METHODS = {"encode", "to_bytes", "translate"}  # that could make what is not counted
_SHORT = 16  # elements that the step itself pays for
_WIDE = {"%": re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)"), "{": re.compile(r"\{[^{}]*(:[^{}]*\d{4}|\{)")}


class Counting(NodeTransformer):
    """Sends through a filter of ours what Jinja compiles to plain Python: turns of a loop, `~`,
    slices, and long lists; text of the template is written like a value.
    """

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "counted_join")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "counted_copy") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "counted_copy") if len(node.items) > _SHORT else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "counted_copy") if len(node.items) > _SHORT else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "counted_copy") if node.ctx == "load" and len(node.items) > _SHORT else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Const:
        return nodes.Const(node.data, lineno=node.lineno).set_environment(node.environment)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    return made.set_environment(node.environment)


def _turns(values: Any) -> Iterator[Any]:
    for value in values:
        spend()
        yield value


def _join(values: list) -> str:
    spend(measure(values))
    return "".join(map(str, values))


def count_made(value: Any) -> Any:
    """Count a value that was made, by its own length, and give it back."""
    if isinstance(value, str):
        spend(len(value))
    elif isinstance(value, list | tuple | dict):
        spend(len(value) * ELEMENT * (4 if isinstance(value, dict) else 1))
    return value


@pass_context
def count_output(context: Any, value: Any) -> Any:
    """Count a value that is written, and give it back."""
    spend(len(value) if isinstance(value, str) else measure(value))
    return value


# filters that `Counting` puts into a template
INSERTED = {"counted_turns": _turns, "counted_join": _join, "counted_copy": count_made}


def counted(name: str, function: Callable) -> Callable:
    """A filter that counts what it makes. Those that are lazy count nothing, those that copy count
    elements, all others the text that their value is.
    """
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # after the context

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[first:]
        others += kwargs.values()
        if name in _COPYING:
            spend(ELEMENT * len(value) if hasattr(value, "__len__") else 0)
        elif name == "join" and not isinstance(value, str | list | tuple):
            value = list(_turns(value))
            args = (*args[:first], value, *args[first + 1 :])
        if name in _LAZY or name in _COPYING:
            return function(*args, **kwargs)
        check_width(*others)
        spend(_text_size(name, value, others))
        return function(*args, **kwargs)

    return call


def _text_size(name: str, value: Any, others: list[Any]) -> int:
    """At least the characters that a filter makes of a value."""
    size = measure(value)
    widths = [other if isinstance(other, int) else measure(other) for other in others if other]
    if name == "replace":
        return _replaced(str(value), *others[:2])
    if name == "format":
        return check_format(str(value), "%", others)
    if name == "join":
        return size + sum(widths) * (len(value) + 1)
    if name in ("indent", "tojson"):
        return size * (1 + max(widths, default=4))
    return size + sum(widths)


def _replaced(text: str, old: Any = "", new: Any = "", *_: Any) -> int:
    return len(text) + text.count(str(old)) * measure(new)


def check_format(text: str, sign: str, values: Any) -> int:
    """Count what a format makes; sign: "%" or "{". Raises TemplateLimitError for wide fields."""
    if _WIDE[sign].search(text):
        raise TemplateLimitError("a field of 1000 characters or more, or of a width that is an argument")
    size = len(text) + text.count(sign) * (measure(values) + 1000)
    spend(size)
    return size


def check_method(owner: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Look at the call of a method before it makes anything; its arguments, read where they were
    lazy.
    """
    if name in _NO_METHODS:
        raise SecurityError(f"{name} is not offered to templates")
    if not isinstance(owner, str):
        return args
    if name == "join" and len(args) == 1:
        args = (list(_turns(args[0])),)
        spend(measure(args[0]) + len(owner) * len(args[0]))
    elif name == "replace":
        spend(_replaced(owner, *args))
    elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        widths = [arg for arg in (*args, *named.values()) if isinstance(arg, int)]
        check_width(*widths)
        tabs = owner.count("\t") if name == "expandtabs" else 1
        spend(len(owner) + tabs * max(widths, default=8))
    else:
        spend(8 * len(owner) if "split" in name else len(owner))
    return args


def _check_add(left: Any, right: Any) -> None:
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        spend((len(left) + len(right)) * (1 if isinstance(left, str) else ELEMENT))


def _check_multiply(left: Any, right: Any) -> None:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            spend(len(sequence) * max(times, 0) * (1 if isinstance(sequence, str) else ELEMENT))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))


def _check_remainder(left: Any, right: Any) -> None:
    if isinstance(left, str):
        check_format(left, "%", right)


def _check_bits(bits: int) -> None:
    if bits > MAX_TEXT // 64:
        raise TemplateLimitError(f"a number of {bits} bits")
    spend()


# looked at before Jinja computes them
OPERATORS = {"+": _check_add, "*": _check_multiply, "**": _check_power, "%": _check_remainder}
