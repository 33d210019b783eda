"""Knows no engine: what a client of the chat completions API may send, and its limits.

Unknown fields are ignored, as OpenAI's clients grow new ones; a known field that this server
cannot honour is refused by name rather than dropped. Every number has a range.
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from localrun.engine import limits

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_CHOICES = 8
MAX_TOKENS = 2**31 - 1
MAX_NAME_CHARS = 512
MAX_GUIDED_CHOICES = 1024


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
            raise _refuse("missing: the schema that the answer is to have")
        return value


def list_of(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
    BeforeValidator(list_of, json_schema_input_type=str | list[str] | None),
]


def short_enough(breaker: str) -> str:
    if len(breaker.encode()) > limits.MAX_BREAKER_BYTES:
        raise _refuse(f"longer than {limits.MAX_BREAKER_BYTES} bytes")
    return breaker


Breakers = Annotated[
    list[Annotated[str, Field(min_length=1), AfterValidator(short_enough)]],
    Field(max_length=limits.MAX_BREAKERS),
]


def token_ids(bias: object) -> object:
    """Token ids travel as the names of a JSON object."""
    if not isinstance(bias, dict):
        return bias
    for name in bias:
        if not (isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10):
            raise _refuse(f"{str(name)[:40]!r} is not a token id")
    return {int(name): value for name, value in bias.items()}


Bias = Annotated[
    Annotated[
        dict[int, Annotated[float, Field(ge=-limits.MAX_BIAS, le=limits.MAX_BIAS)]],
        Field(max_length=limits.MAX_BIASES),
    ]
    | None,
    BeforeValidator(token_ids, json_schema_input_type=dict[str, float] | None),
]
GrammarText = Annotated[str, Field(min_length=1, max_length=limits.MAX_GRAMMAR_BYTES)]
GuidedChoices = Annotated[list[GrammarText], Field(min_length=1, max_length=MAX_GUIDED_CHOICES)]
# What may say of what form the answer is, in the order of the class: one of them at most.
_FORMS = ("response_format", "grammar", "json_schema", "guided_json", "guided_regex")


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
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stops = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_LOGPROBS)
    logit_bias: Bias = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, max_length=MAX_NAME_CHARS)

    # llama.cpp's: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    dry_multiplier: float | None = Field(default=None, ge=0, le=100)
    dry_base: float | None = Field(default=None, ge=1, le=100)
    dry_allowed_length: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    dry_penalty_last_n: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    dry_sequence_breakers: Breakers | None = None
    xtc_probability: float | None = Field(default=None, ge=0, le=1)
    xtc_threshold: float | None = Field(default=None, ge=0, le=1)
    grammar: GrammarText | None = None
    json_schema: dict[str, Any] | None = None
    # Generate on past the end, for measuring.
    ignore_eos: bool | None = None

    # vLLM's: https://docs.vllm.ai/en/latest/features/structured_outputs.html
    guided_json: dict[str, Any] | None = None
    guided_regex: GrammarText | None = None
    guided_choice: GuidedChoices | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: object) -> object:
        """JSON may escape half a surrogate pair anywhere; no tokenizer can take it."""
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _refuse("a string holds half of a surrogate pair, which is no text") from error
        return body

    @field_validator("tool_choice")
    @classmethod
    def _free_choice(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if value not in (None, "auto", "none"):
            raise _refuse("only 'auto' and 'none' are supported")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _asked_for(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise _refuse("logprobs must be true for it")
        return value

    @field_validator("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice")
    @classmethod
    def _one_form(cls, value: object, info: ValidationInfo) -> object:
        # The fields before this one are what is known yet.
        before = [name for name in _FORMS if _held(info.data.get(name))]
        if value is not None and before:
            raise _refuse(f"the answer has its form by {before[0]} already")
        return value


def _held(value: object) -> bool:
    return value is not None and not (isinstance(value, ResponseFormat) and value.type == "text")


def field_name(location: tuple[int | str, ...]) -> str:
    """A pydantic location as a client writes it: ``messages[0].content``."""
    # Among the names are tags of union members, which no client wrote: `tool_choice.str`.
    parts = [part for part in location if part not in ("body", "str") and "[" not in str(part)]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return name.removeprefix(".")
