"""The form of an answer: a schema, a grammar, a call of a tool.

In: the fields of a request that ask for one. Out: a `Form`, with the name of the field that it came in.
Every JSON schema of a request is checked, those too that nothing forces.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from firp.runtime.chat.tool_calls import ToolFamily, calls_grammar
from firp.runtime.errors import FirpError
from firp.runtime.grammar.schemas import schema_fault
from firp.runtime.serving.api.fields import ChatRequest, NamedTool, ResponseFormat, Structure
from firp.runtime.serving.errors import ApiError, engine_error, form_error
from firp.runtime.serving.served_engine import ServedEngine
from firp.runtime.structured import StructuredOutput

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # of llguidance
_SCHEMA = "response_format.json_schema.schema"


class Form(NamedTuple):
    """What an answer must be; output: None for any text. field: what it was asked for in."""

    output: StructuredOutput | None = None
    field: str | None = None


def chat_form(request: ChatRequest, family: ToolFamily | None, service: ServedEngine) -> Form:
    """The form of a message. Where tools may be called and a format is asked for, either is right.
    family: how calls are written; None where none may be. Raises ApiError.
    """
    for index, tool in enumerate(request.tools):
        if tool.function.parameters is not None:
            _schema_form(f"tools[{index}].function.parameters", tool.function.parameters)
    choice = request.tool_choice or "auto"
    forced = choice == "required" or isinstance(choice, NamedTool)
    answer = _answer_form(request.response_format)
    if family is None or not (forced or answer.output is not None):
        return structured_form(request.structured_outputs) if request.structured_outputs else answer
    if request.structured_outputs:
        message = "structured_outputs and calls of tools exclude each other."
        raise ApiError(400, message, "structured_outputs", "invalid_value")
    named = choice.function.name if isinstance(choice, NamedTool) else None
    functions = [
        {"name": tool.function.name, "parameters": _spaced(tool.function.parameters or {"type": "object"})}
        for tool in request.tools
        if named is None or tool.function.name == named
    ]
    parallel = request.parallel_tool_calls and named is None
    schema = None if forced else _answer_schema(request.response_format)
    grammar = calls_grammar(family, functions, parallel, service.special_token, schema)
    return _form("tools", lark=grammar)


def structured_form(structure: Structure | None) -> Form:
    """The form of vLLM's structured_outputs. Raises ApiError."""
    if structure is None:
        return Form()
    if (schema := structure.json_schema) is not None:
        return _schema_form("structured_outputs.json", schema)
    if structure.choice:
        return _form("structured_outputs.choice", choice=tuple(structure.choice))
    if structure.regex:
        return _form("structured_outputs.regex", regex=structure.regex)
    return _form("structured_outputs.grammar", lark=structure.grammar)


def _answer_form(form: ResponseFormat | None) -> Form:
    schema = _answer_schema(form)
    return Form() if schema is None else _schema_form(_SCHEMA, schema)


def _answer_schema(form: ResponseFormat | None) -> Mapping[str, Any] | None:
    if form is None or form.type == "text":
        return None
    return _spaced(form.json_schema.schema_ if form.json_schema else {"type": "object"})


def _schema_form(field: str, schema: Mapping[str, Any] | str) -> Form:
    form = _form(field, json_schema=_spaced(schema) if isinstance(schema, dict) else schema)
    try:
        fault = schema_fault(form.output.json_schema)
    except FirpError as error:
        raise engine_error(error) from error
    if fault is not None:
        message = f"Invalid '{field}': {fault.reason} at {fault.path}."
        raise ApiError(400, message, field, "invalid_value")
    return form


def _spaced(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema whose JSON has the blanks that Python's has: where any are allowed, small models write
    blanks for ever.
    """
    return {"x-guidance": _SPACING, **schema}


def _form(field: str, **kind: Any) -> Form:
    try:
        return Form(StructuredOutput(**kind), field)
    except FirpError as error:
        raise form_error(error, field) from error
