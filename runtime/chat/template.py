"""The chat template of a model: messages in, the text that the model was trained to see out.

In: chat_template.jinja and tokenizer_config.json, as bytes. Out: what transformers'
`apply_chat_template` gives for the same messages, or one line that says why not. Jinja is imported
when a template is rendered.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firp.runtime.chat.messages import check_messages
from firp.runtime.errors import BundleError, PromptError

TEMPLATE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; the first is the usual one


class ChatTemplate:
    """A model's templates by name, and the special tokens that they may name.

    templates: "default", or the only one, serves; "tool_use", where there is one, when tools are
    given. special_tokens: "bos_token", "eos_token" and others, as text.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None):
        self._templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        self.special_tokens = dict(special_tokens or {})

    @classmethod
    def from_files(cls, read: Callable[[str], bytes | None]) -> "ChatTemplate | None":
        """The template of a bundle or a model directory; None where it has none.

        read: the content of a file by its name, None where there is no such file. Raises BundleError
        for files that hold something else.
        """
        raw = read(CONFIG_NAME)
        config = _json(raw) if raw is not None else {}
        templates = _named(config.get("chat_template"))
        text = read(TEMPLATE_NAME)
        if text is not None:
            templates = {"default": _text(text, TEMPLATE_NAME)}
        return cls(templates, _special_tokens(config)) if templates else None

    @property
    def eos_token(self) -> str | None:
        """The text of the token that ends a turn, by tokenizer_config.json."""
        return self.special_tokens.get("eos_token")

    def source(self, for_tools: bool) -> str:
        """The text of the template that serves. Raises BundleError where there is none."""
        name = "tool_use" if for_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise BundleError(
                "no default chat template", got=", ".join(self._templates), expected="one named default"
            )
        return self._templates[name]

    def check(self) -> None:
        """Raises BundleError for a template that is none."""
        self._compiled(for_tools=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The messages as text.

        tools: JSON schemas; documents: to answer from; add_generation_prompt: end with what begins
        an answer; variables: for the template, such as enable_thinking. Raises PromptError for
        messages that are none, or that the template refuses, BundleError for a template that is
        none.
        """
        checked = [_with_reasoning(message) for message in check_messages(messages)]
        for name, given in (("tools", tools), ("documents", documents)):
            if given is not None and not (
                isinstance(given, list | tuple) and all(isinstance(item, Mapping) for item in given)
            ):
                raise PromptError(f"bad {name}", got=f"{given!r:.60}", expected="a list of JSON objects")
        values = {"messages": checked, "tools": tools, "documents": documents}
        values |= {"add_generation_prompt": add_generation_prompt}
        return self._compiled(tools is not None)({**self.special_tokens, **variables, **values})

    def _compiled(self, for_tools: bool) -> "Callable[[Mapping[str, Any]], str]":
        from firp.runtime.chat.rendering import compile_template

        return compile_template(self.source(for_tools))


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its reasoning under the names that templates read."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return (
        message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
    )


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{name} is not UTF-8", got=f"{error.reason} at byte {error.start}") from error


def _json(raw: bytes) -> dict[str, Any]:
    try:
        config = json.loads(_text(raw, CONFIG_NAME))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{CONFIG_NAME} is not JSON", got=f"{error!s:.80}") from error
    if not isinstance(config, dict):
        raise BundleError(f"bad {CONFIG_NAME}", got=f"{config!r:.60}", expected="a JSON object")
    return config


def _named(found: Any) -> dict[str, str]:
    """Templates by name, from the value of "chat_template": a text, or a list of named ones."""
    if found is None:
        return {}
    listed = [{"name": "default", "template": found}] if isinstance(found, str) else found
    if not isinstance(listed, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in listed
    ):
        raise BundleError(
            f"bad chat_template in {CONFIG_NAME}",
            got=f"{found!r:.60}",
            expected='text, or a list of {"name": str, "template": str}',
        )
    return {item["name"]: item["template"] for item in listed}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Tokens like "bos_token": their text, or an object with it as "content"."""
    tokens = {}
    for key, value in config.items():
        if key.endswith("_token"):
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                tokens[key] = content
    return tokens
