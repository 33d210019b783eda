"""Knows no engine: what a client of the chat completions API may send, and its limits.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from localrun.engine import limits
from localrun.server.fields import (
    MAX_CHOICES,
    MAX_NAME_CHARS,
    MAX_TOKENS,
    Body,
    Content,
    GrammarText,
    GuidedChoices,
    Stops,
    Strict,
    refuse,
)
from localrun.server.sampling import SamplingFields
from localrun.server.tools import Tools


def object_of(arguments: object) -> object:
    """A tool call's arguments as an object. They travel as a string that holds JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise refuse("not JSON in a string") from error
    if not isinstance(value, dict):
        raise refuse("not a JSON object in a string")
    return value


class Function(Strict):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    arguments: Annotated[
        dict[str, Any], BeforeValidator(object_of, json_schema_input_type=str | dict[str, Any])
    ] = Field(default_factory=dict)


class CalledTool(Strict):
    id: str = Field(default="", max_length=MAX_NAME_CHARS)
    function: Function


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    name: str | None = Field(default=None, max_length=MAX_NAME_CHARS)


class StreamOptions(Strict):
    include_usage: bool = False


class JsonSchema(Strict):
    """``strict`` false is held as if it were true: what is asked for is always what comes."""

    name: str = Field(default="", max_length=MAX_NAME_CHARS)
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """``schema`` beside ``json_object`` is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    # First of the two: the other's validator looks at it.
    object_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    json_schema: JsonSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _given(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if value is None and info.data.get("type") == "json_schema":
            raise refuse("missing: the schema that the answer is to have")
        return value


class ToolName(Strict):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)


class NamedTool(Strict):
    """``tool_choice`` of one tool."""

    type: Literal["function"] = "function"
    function: ToolName


# What may say of what form the answer is, in the order of the class: one of them at most.
_FORMS = ("response_format", "grammar", "json_schema", "guided_json", "guided_regex")


class ChatRequest(SamplingFields, Body):
    """The body of ``POST /v1/chat/completions``. None means: the server's default."""

    model: str = Field(min_length=1, max_length=4096)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    stop: Stops = None
    tools: Tools = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    chat_template_kwargs: dict[str, Any] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, max_length=MAX_NAME_CHARS)

    # llama.cpp's.
    grammar: GrammarText | None = None
    json_schema: dict[str, Any] | None = None
    # Generate on past the end, for measuring.
    ignore_eos: bool | None = None

    # vLLM's: https://docs.vllm.ai/en/latest/features/structured_outputs.html
    guided_json: dict[str, Any] | None = None
    guided_regex: GrammarText | None = None
    guided_choice: GuidedChoices | None = None

    @field_validator("tool_choice")
    @classmethod
    def _has_tools(
        cls, value: str | NamedTool | None, info: ValidationInfo
    ) -> str | NamedTool | None:
        if value not in (None, "auto", "none") and not info.data.get("tools"):
            raise refuse("there are no tools to choose from")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _asked_for(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise refuse("logprobs must be true for it")
        return value

    @field_validator("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice")
    @classmethod
    def _one_form(cls, value: object, info: ValidationInfo) -> object:
        # The fields before this one are what is known yet.
        before = [name for name in _FORMS if _held(info.data.get(name))]
        if value is not None and before:
            raise refuse(f"the answer has its form by {before[0]} already")
        return value

    @model_validator(mode="after")
    def _call_or_form(self) -> Self:
        called = self.tool_choice not in (None, "auto", "none")
        formed = [name for name in (*_FORMS, "guided_choice") if _held(getattr(self, name))]
        if called and formed:
            raise refuse(f"tool_choice asks for a call, {formed[0]} for another form of answer")
        return self


def _held(value: object) -> bool:
    return value is not None and not (isinstance(value, ResponseFormat) and value.type == "text")
