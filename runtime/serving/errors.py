"""Errors as OpenAI's clients read them.

In: mistakes of a request, errors of the engine. Out: an `ApiError` with its HTTP status, and the JSON
object {"error": {"message", "type", "param", "code"}}.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from firp.runtime.errors import (
    ContextFullError,
    EngineBusyError,
    EngineClosedError,
    FirpError,
    GrammarError,
    PromptError,
    RequestTooLargeError,
)

RETRY_AFTER_S = 1
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_BAD = re.compile(r"(?:bad|the grammar of) ([\w ]+?)(?: does not compile)?")  # how errors of parameters begin
# where a field has another name
_FIELDS = {"max_new_tokens": "max_tokens"}
_FORMS = ("json_schema", "regex", "lark", "choice", "json_object")  # whose field the request tells
_MOST_CHARACTERS = 60  # of a name that a client made up
_UNSUPPORTED = frozenset(
    ("audio", "web_search_options", "functions", "function_call", "prediction", "moderation", "suffix")
)
# below these fields pydantic names the kinds that a value could be of
_OF_SEVERAL_KINDS = frozenset(("stop", "prompt", "tool_choice", "json"))


class ApiError(Exception):
    """A request that ends with this status. param: the field that is wrong; code: for programs;
    retry: whether the same request may succeed a little later.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
    ):
        super().__init__(message)
        self.status = status
        self.message = _unicode(message)
        self.param = None if param is None else _unicode(param)
        self.code = code
        self.retry = retry

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        kind = _TYPES.get(self.status) or (
            "invalid_request_error" if 400 <= self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells a client whether, and when, to try again."""
        headers = {"x-should-retry": "true" if self.retry else "false"}
        if self.retry:
            headers["retry-after"] = str(RETRY_AFTER_S)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def _unicode(text: str) -> str:
    """Text that UTF-8 can carry: halves of characters, which JSON may hold, are spelled."""
    return text.encode("utf-8", "backslashreplace").decode()


def context_error(context: int, prompt: int, answer: int, param: str) -> ApiError:
    """A request beyond the context, in words that clients recognize. prompt, answer: tokens."""
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + answer} tokens ({prompt} in the {param}, {answer} in the completion). Please reduce the "
        f"length of the {param} or completion."
    )
    return ApiError(400, message, param, "context_length_exceeded")


def draining_error() -> ApiError:
    """What a server answers that is shutting down."""
    return ApiError(503, "The server is shutting down.", code="shutting_down", retry=True)


def json_error(cause: BaseException | str) -> ApiError:
    """A body that is no JSON, or none that can be read. cause: what reading it raised."""
    return ApiError(400, f"The request's body is not JSON: {cause!s:.200}.", code="invalid_json")


def ended_error(reason: str | None) -> ApiError | None:
    """The error of a request that ended before its answer did; None where it did not."""
    if reason == "deadline":
        return ApiError(408, "The request's deadline has passed.", "deadline_s", "deadline_exceeded")
    return draining_error() if reason == "cancelled" else None


def field_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors, with the field's name and what was given."""
    first = _most_telling(errors)
    param = _path(first["loc"])
    if first["type"] == "json_invalid":
        return json_error(first["ctx"]["error"])
    if isinstance(first["input"], bytes):  # of another content type
        return json_error("content-type: application/json is expected")
    if first["type"] == "extra_forbidden":
        known = first["loc"][-1] in _UNSUPPORTED
        what = f"'{param}' is not supported by this server" if known else f"Unrecognized argument: '{param}'"
        return ApiError(400, f"{what}.", param, "unsupported_parameter" if known else "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"Missing argument: '{param or 'body'}'.", param or None, "missing_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        param = param or message.split()[0]
        return ApiError(400, f"{message}.", param, "invalid_value")
    given = f"{first['input']!r:.80}"
    return ApiError(
        400, f"Invalid '{param or 'body'}': {message}, got {given}.", param or None, "invalid_value"
    )


def _most_telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first error; of a value that could be of several kinds the one of the kind that it is."""
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return next((error for error in same if not error["type"].endswith("_type")), errors[0])


def _path(location: Sequence[str | int]) -> str:
    path = ""
    for part in location[1:]:  # the first says that it is the body
        if part == "[key]":
            break
        path += f"[{part}]" if isinstance(part, int) else f".{cut(part)}" if path else cut(part)
        if part in _OF_SEVERAL_KINDS:
            break
    return path


def cut(name: str) -> str:
    """A name that a client made up, shortened where it is long."""
    return name if len(name) <= _MOST_CHARACTERS else name[:_MOST_CHARACTERS] + "…"


def decoding_error(error: FirpError) -> ApiError:
    """What it is to a client that an engine failed on a request that it had taken: no mistake of the
    client's, but for a form that no answer has.
    """
    if isinstance(error, EngineClosedError):
        return engine_error(error)
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), code="grammar_failed")
    return ApiError(500, str(error), code="decoding_failed")


def form_error(error: FirpError, field: str) -> ApiError:
    """What is wrong with the form of an answer. field: what it was asked for in. The grammar of calls of
    tools is ours: nothing of it is told.
    """
    if field == "tools":
        return ApiError(400, "Invalid 'tools': their calls have no grammar.", field, "invalid_value")
    what = re.sub(rf"^(bad|the grammar of)? ?({'|'.join(_FORMS)}) ?", "", error.what)
    parts = (what, error.got and f"got {error.got!s:.300}", error.expected and f"expected {error.expected}")
    return ApiError(400, f"Invalid '{field}': {', '.join(filter(None, parts))}.", field, "invalid_value")


def engine_error(error: FirpError, param: str | None = None, form: str | None = None) -> ApiError:
    """What a FirpError is to a client. param: the field that the prompt came in; form: the one that the
    form of the answer came in.
    """
    message = str(error)
    if isinstance(error, EngineBusyError):
        return ApiError(429, message, code="engine_busy", retry=True)
    if isinstance(error, EngineClosedError):
        return ApiError(503, message, code="engine_closed", retry=True)
    if isinstance(error, RequestTooLargeError):
        return ApiError(400, message, param, "request_too_large")
    if isinstance(error, ContextFullError):
        return ApiError(400, message, param, "context_length_exceeded")
    found = _BAD.fullmatch(error.what)
    name = found[1].replace(" ", "_") if found else None
    if isinstance(error, PromptError) and name != "chat_template_kwargs":
        return ApiError(400, message, param, "invalid_value")
    if form is not None and name in _FORMS:
        return form_error(error, form)
    return ApiError(400, message, _FIELDS.get(name, name), "invalid_value")
