"""Knows no engine: what a client of the chat completions API may send, and its limits.

Unknown fields are ignored, as OpenAI's clients grow new ones; a known field that this server
cannot honour is refused by name rather than dropped. Every number has a range.
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_CHOICES = 8
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1
MAX_NAME_CHARS = 512


class Strict(BaseModel):
    """JSON types are meant: no ``"0.5"`` for a number, no NaN, no true for 1."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _refuse(message: str) -> PydanticCustomError:
    # Braces would be taken for a template's.
    return PydanticCustomError("refused", "{why}", {"why": message})


def text_of(content: object) -> object:
    """A message's content as one string: text parts are joined, any other kind is refused."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            shown = repr(kind)[:40]
            raise _refuse(f"part {index} has the type {shown}: this server takes text parts only")
        if not isinstance(part.get("text"), str):
            raise _refuse(f"part {index} has no text")
        texts.append(part["text"])
    return "".join(texts)


Content = Annotated[
    str | None,
    BeforeValidator(text_of, json_schema_input_type=str | list[dict[str, Any]] | None),
]


def object_of(arguments: object) -> object:
    """A tool call's arguments as an object. They travel as a string that holds JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise _refuse("not JSON in a string") from error
    if not isinstance(value, dict):
        raise _refuse("not a JSON object in a string")
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


class ResponseFormat(Strict):
    type: str


def list_of(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
    BeforeValidator(list_of, json_schema_input_type=str | list[str] | None),
]


class ChatRequest(Strict):
    """The body of ``POST /v1/chat/completions``. None means: the server's default."""

    model: str = Field(min_length=1, max_length=4096)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stops = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MAX_LOGIT_BIAS)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    # llama.cpp's: generate on past the end, for measuring.
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: object) -> object:
        """JSON may escape half a surrogate pair anywhere; no tokenizer can take it."""
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _refuse("a string holds half of a surrogate pair, which is no text") from error
        return body

    @field_validator("n")
    @classmethod
    def _one_choice(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise _refuse("one choice a request is what this server makes")
        return value

    @field_validator("response_format")
    @classmethod
    def _free_text(cls, value: ResponseFormat | None) -> ResponseFormat | None:
        if value is not None and value.type != "text":
            raise _refuse(f"{value.type[:40]!r} is not supported, only 'text'")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _free_choice(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if value not in (None, "auto", "none"):
            raise _refuse("only 'auto' and 'none' are supported")
        return value

    @field_validator(
        "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty"
    )
    @classmethod
    def _not_asked(cls, value: object) -> object:
        if value:
            raise _refuse("not supported by this server")
        return value


def field_name(location: tuple[int | str, ...]) -> str:
    """A pydantic location as a client writes it: ``messages[0].content``."""
    # Among the names are tags of union members, which no client wrote: `tool_choice.str`.
    parts = [part for part in location if part not in ("body", "str") and "[" not in str(part)]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return name.removeprefix(".")
