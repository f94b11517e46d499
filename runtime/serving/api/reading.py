"""From the fields of a request to what the engine takes.

In: a `ChatRequest` or a `CompletionRequest`. Out: prompts as token ids, `SamplingParams`, how calls of
tools are read.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from firp.runtime.chat.messages import check_messages
from firp.runtime.chat.tool_calls import ToolFamily
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.serving.api.fields import ChatRequest, Common, CompletionRequest
from firp.runtime.serving.api.forms import Form, chat_form, structured_form
from firp.runtime.serving.errors import ApiError, cut, engine_error
from firp.runtime.serving.served_engine import ServedEngine

_MESSAGE_FIELDS = frozenset(
    (
        *("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "audio"),
        *("function_call", "reasoning_content", "reasoning", "thinking"),
    )
)


class Asked(NamedTuple):
    """What is asked of the engine."""

    prompts: list[list[int]]
    params: list[SamplingParams]  # of each prompt
    form: Form  # of every answer
    family: ToolFamily | None = None  # how calls are read; None: an answer is text
    functions: tuple[str, ...] = ()  # that may be called


def read_chat(request: ChatRequest, service: ServedEngine) -> Asked:
    """A conversation. Raises ApiError."""
    choice = request.tool_choice or "auto"
    tools = [] if choice == "none" else request.tools
    family = service.tool_family if tools else None
    if tools and family is None:
        message = "Invalid 'tools': the chat template of this model has no tools."
        raise ApiError(400, message, "tools", "unsupported_parameter")
    prompt = _chat_prompt(request, [tool.model_dump(exclude_none=True) for tool in tools], service)
    asked = request.max_completion_tokens or request.max_tokens
    most = service.answer_tokens(prompt, asked, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    form = chat_form(request, family, service)
    params = _sampling(request, most, logprobs=logprobs, structured=form.output)
    if not request.ignore_eos:  # the prompt goes as token ids: what ends a turn is said here
        ends = tuple(service.engine.chat_encoder.ends.difference(params.stop_token_ids))
        params = replace(params, stop_token_ids=params.stop_token_ids + ends)
    return Asked([prompt], [params], form, family, tuple(tool.function.name for tool in tools))


def read_completion(request: CompletionRequest, service: ServedEngine) -> Asked:
    """Texts to continue. Raises ApiError."""
    if request.logprobs is not None and service.tokens is None:
        raise ApiError(400, "The model has no tokenizer: leave out logprobs.", "logprobs", "invalid_value")
    given = request.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    prompts = [_tokens(prompt, service) for prompt in (given if several else [given])]
    form = structured_form(request.structured_outputs)
    more = {"logprobs": request.logprobs, "structured": form.output}
    if request.echo and request.logprobs is not None:
        more["prompt_logprobs"] = request.logprobs
    params = []
    for prompt in prompts:
        most = service.answer_tokens(prompt, request.max_tokens or 1, "prompt")
        params.append(_sampling(request, most, **more))
    return Asked(prompts, params, form)


def _tokens(prompt: str | list[int], service: ServedEngine) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    if service.engine.tokenizer is None:
        raise ApiError(400, "The model has no tokenizer: send token ids.", "prompt", "invalid_value")
    try:
        return service.engine.encode(prompt)
    except FirpError as error:
        raise engine_error(error, "prompt") from error


def _sampling(request: Common, most: int, **more: Any) -> SamplingParams:
    """Rules of the pick. A request without a seed draws one."""
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
    same = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    try:
        return SamplingParams(
            max_new_tokens=most,
            top_k=max(request.top_k, 0),
            seed=seed,
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop),
            ignore_eos=request.ignore_eos,
            logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
            min_tokens=request.min_tokens,
            stop_token_ids=tuple(request.stop_token_ids),
            **{name: getattr(request, name) for name in same},
            **more,
        )
    except FirpError as error:
        raise engine_error(error) from error


def _chat_prompt(
    request: ChatRequest, tools: Sequence[Mapping[str, Any]], service: ServedEngine
) -> list[int]:
    """Token ids of the messages, by the model's own template."""
    try:
        encoder = service.engine.chat_encoder
        developer = "developer" in encoder.template.source(for_tools=bool(tools))
        messages = [_message(message, i, developer) for i, message in enumerate(request.messages)]
        checked = check_messages(messages, request.chat_template_kwargs)
        return encoder.encode(checked, tools or None, request.add_generation_prompt)
    except FirpError as error:
        raise engine_error(error, "messages") from error


def _message(message: Mapping[str, Any], index: int, developer: bool) -> dict[str, Any]:
    """A message as templates expect it: calls with their arguments as objects; instructions of a
    developer are the system's where a template does not know that role.
    """
    where = f"messages[{index}]"
    if unknown := sorted(message.keys() - _MESSAGE_FIELDS):
        name = f"{where}.{cut(unknown[0])}"
        raise ApiError(400, f"Unrecognized argument: '{name}'.", name, "unknown_parameter")
    checked = dict(message)
    if checked.get("role") == "developer" and not developer:
        checked["role"] = "system"
    if checked.get("audio") is not None or checked.get("function_call") is not None:
        raise ApiError(
            400, f"Audio and function_call of '{where}' are not supported.", where, "unsupported_parameter"
        )
    calls = checked.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise ApiError(400, f"Invalid '{where}.tool_calls': a list is expected.", where, "invalid_value")
        checked["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return checked


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) and arguments else arguments or {}
    except (ValueError, RecursionError):
        parsed = None
    if (
        not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not isinstance(parsed, dict)
    ):
        message = f"Invalid '{where}': a function with a name and arguments, a JSON object, is expected."
        raise ApiError(400, message, where, "invalid_value")
    return {**call, "function": {**function, "arguments": parsed}}
