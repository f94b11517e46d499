"""Fields of requests, as OpenAI's clients send them, with vLLM's names for what goes beyond.

In: a JSON object. Out: a model with every field of its type and in its range, or pydantic's list of
what is wrong. Fields that change nothing here are taken and dropped; unknown ones are refused. Of a
list the first error alone is looked for: 900,000 of them take the event loop 20 seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_SAMPLES = 128
MOST_PROMPTS = 128

IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "verbosity"),
        *("reasoning_effort", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    )
)
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
TokenName = Annotated[str, Field(pattern=r"^\d{1,9}$")]


class Fields(BaseModel):
    """An object that takes no field that it does not know; null is as if it were not there. Of those that
    it does not know the first alone is looked at.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = IGNORED.union(field.alias or name for name, field in cls.model_fields.items())
        found = {name: value for name, value in given.items() if value is not None}
        first = next((name for name in found if name not in known), None)
        return {name: value for name, value in found.items() if name in known or name == first}


class StreamOptions(Fields):
    """include_usage: a last chunk with the usage; include_obfuscation: taken, padding is not made."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Structure(Fields):
    """vLLM's structured_outputs: one of these."""

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: Text | None = None
    grammar: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Structure":
        given = (self.json_schema, self.regex, self.grammar, self.choice)
        if sum(value is not None for value in given) != 1:
            raise ValueError("one of json, regex, grammar, choice is expected")
        return self


class Common(Fields):
    """What both kinds of completion take."""

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in IGNORED}

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    stop: Text | Annotated[list[Text], Field(max_length=4)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[
        dict[TokenName, Annotated[float, Field(ge=-100, le=100)]], Field(fail_fast=True)
    ] = {}
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] = []
    ignore_eos: bool = False
    structured_outputs: Structure | None = None
    return_token_ids: bool = False
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _streamed(self) -> "Common":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true alone")
        return self


class Function(Fields):
    """A function that may be called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionName(Fields):
    """The name of a function."""

    name: Text


class NamedTool(Fields):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Fields):
    """A schema with a name; `strict` changes nothing, since every schema is kept to."""

    name: Text
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema")
        return self


class ChatRequest(Common):
    """A request to /v1/chat/completions. messages: checked where they are rendered."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _together(self) -> "ChatRequest":
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise ValueError("max_tokens and max_completion_tokens say different things")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs are for logprobs: true alone")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice is for requests with tools alone")
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            raise ValueError("structured_outputs and response_format exclude each other")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools name one function twice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        return self


Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Common):
    """A request to /v1/completions. echo: the prompt comes first, and may come alone (max_tokens 0)."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _together(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 is for echo: true alone")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of other than n is not supported")
        return self
