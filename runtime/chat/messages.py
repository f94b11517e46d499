"""Messages of a conversation, checked once.

In: what a caller, a line of a file or a request gave. Out: `Messages` that a chat template can
render, or one line that names the message that is wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from firp.runtime.errors import PromptError

ROLES = ("system", "developer", "user", "assistant", "tool")
# What a rendering passes itself, so that nobody gives it by name
_PASSED = ("self", "messages", "tools", "documents", "add_generation_prompt")


class Messages(list[dict[str, Any]]):
    """Messages that were checked. variables: what their template may read besides, by name, such as
    enable_thinking.
    """

    def __init__(self, messages: Iterable[dict[str, Any]], variables: Mapping[str, Any] | None = None):
        super().__init__(messages)
        self.variables = dict(variables or {})


def is_messages(prompt: Any) -> bool:
    """Tell messages from text and token ids: a list or a tuple whose first item is a mapping."""
    return isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], Mapping)


def check_messages(messages: Any, variables: Any = None) -> Messages:
    """Copies of the messages, without the keys that are None.

    variables: for their template, by name, beside those that `Messages` have already, and before
    them.

    Each has a "role" of `ROLES` and a "content": text, or a list of {"type": "text", "text": str};
    one with "tool_calls" needs no content. Further keys are the template's. Raises PromptError.
    """
    known = messages.variables if isinstance(messages, Messages) else {}
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise PromptError("bad messages", got=f"{messages!r:.60}", expected='a list of {"role", "content"}')
    if not messages:
        raise PromptError("no messages", got="an empty list", expected="at least one")
    checked = (_checked(message, index) for index, message in enumerate(messages, 1))
    return Messages(checked, known | check_variables(variables))


def check_variables(variables: Any) -> dict[str, Any]:
    """A copy of a template's variables; none of None. Raises PromptError."""
    if variables is None:
        return {}
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise PromptError(
            "bad chat_template_kwargs",
            got=f"{variables!r:.60}",
            expected='names and values, as in {"a": true}',
        )
    if taken := [name for name in _PASSED if name in variables]:
        raise PromptError("bad chat_template_kwargs", got=taken[0], expected="a name of the template's own")
    return dict(variables)


def _checked(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"bad message {index}", got=f"{message!r:.60}", expected='{"role", "content"}')
    role = message.get("role")
    if role not in ROLES:
        raise PromptError(f"unknown role of message {index}", got=f"{role!r:.60}", expected=", ".join(ROLES))
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise PromptError(f"message {index} has no content", got=f"role {role!r}", expected="text")
    if not (content is None or isinstance(content, str) or _are_text_parts(content)):
        raise PromptError(
            f"bad content of message {index}",
            got=f"{content!r:.60}",
            expected='text, or a list of {"type": "text", "text": str}',
        )
    return {key: value for key, value in message.items() if value is not None}


def _are_text_parts(content: Any) -> bool:
    return isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )
