"""Knows no engine: what a client of the Responses API may send, and its limits.

Nothing is kept between requests: ``store`` is answered false, and what would need a memory
(``previous_response_id``, ``conversation``, ``prompt``, ``background``) is refused. Nothing is ever
cut: ``truncation`` "auto" is taken, and a conversation that does not fit is refused all the same.
https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from localrun.engine import limits
from localrun.server.fields import MAX_NAME_CHARS, MAX_TOKENS, Body, Strict, refuse
from localrun.server.openai.responses.items import Input
from localrun.server.openai.responses.tools import Name, Tools
from localrun.server.sampling import SamplingFields
from localrun.server.tools import MAX_TOOLS

# OpenAI's own limits.
MAX_METADATA: Final = 16
Who = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Summary = Literal["auto", "concise", "detailed", "none"]


class ReasoningOptions(Strict):
    """``effort`` goes to the chat template. Whoever asks for a ``summary`` is told all that is
    thought as one."""

    effort: Who | None = None
    summary: Summary | None = None


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Who | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        # What is missing is then looked at by the name that it is sent with.
        return {"schema": None, **value} if isinstance(value, dict) else value

    @field_validator("json_schema")
    @classmethod
    def _given(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is None and info.data.get("type") == "json_schema":
            raise refuse("missing: the schema that the answer is to have")
        return value


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Named(Strict):
    """One tool, as a choice names it."""

    type: Who
    name: Name | None = None
    namespace: Who | None = None


class Choice(Named):
    """A mode by its name, or one tool, or a mode and the ``tools`` it is of."""

    mode: Literal["auto", "required"] | None = None
    tools: list[Named] | None = Field(default=None, max_length=MAX_TOOLS)


def choice_of(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class ResponsesRequest(SamplingFields, Body):
    """The body of ``POST /v1/responses``. None means: the server's default."""

    model: str = Field(min_length=1, max_length=4096)
    input: Input
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_tool_calls: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    top_logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: Annotated[
        Choice | None,
        BeforeValidator(choice_of, json_schema_input_type=str | dict[str, Any] | None),
    ] = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=MAX_NAME_CHARS)],
            ],
            Field(max_length=MAX_METADATA),
        ]
        | None
    ) = None
    include: list[Who] | None = Field(default=None, max_length=64)
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    service_tier: Who | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Each tells who asks, the first of them that is given.
    user: Who | None = None
    safety_identifier: Who | None = None
    prompt_cache_key: Who | None = None

    # Refused: see above. The first has a code of its own, by which clients send all again.
    previous_response_id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None

    @field_validator("background")
    @classmethod
    def _in_the_foreground(cls, value: bool | None) -> bool | None:
        if value:
            raise refuse("this server answers while the client waits, or in a stream")
        return value

    @field_validator("conversation", "prompt")
    @classmethod
    def _nothing_kept(cls, value: object) -> object:
        if value is not None:
            raise refuse("this server keeps none, send all of it as input")
        return value

    def includes(self, what: str) -> bool:
        return what in (self.include or ())
