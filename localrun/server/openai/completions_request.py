"""Knows no engine: what a client of the completions API may send, and its limits.

https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from localrun.chat.messages import Prompt
from localrun.server.fields import (
    MAX_CHOICES,
    MAX_NAME_CHARS,
    MAX_TOKENS,
    Body,
    Stops,
    refuse,
)
from localrun.server.forms import FormFields
from localrun.server.openai.chat_request import StreamOptions
from localrun.server.prompts import MAX_ANSWERS, TokenId, is_id
from localrun.server.sampling import SamplingFields

MAX_LOGPROBS: Final = 5

TextsOrIds = (
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
)
"""The four ways to write texts, as the document of the API shows them."""


def texts_of(value: object) -> tuple[Prompt, ...]:
    """Texts, each as a string or as the ids of its tokens. None of them is empty."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise refuse("neither a string nor a list of strings or of token ids")
    if value and is_id(value[0]):
        value = [value]
    if not value:
        raise refuse("an empty list holds no text")
    return tuple(_text(at, each) for at, each in enumerate(value))


def _text(at: int, value: object) -> Prompt:
    if value in ("", []):
        raise refuse(f"text {at} is empty")
    if isinstance(value, str):
        return Prompt.of(value)
    if isinstance(value, list) and all(map(is_id, value)):
        return Prompt(tuple(value))
    raise refuse(f"text {at} is neither a string nor a list of token ids of 0 to {MAX_TOKENS}")


Texts = Annotated[tuple[Prompt, ...], PlainValidator(texts_of, json_schema_input_type=TextsOrIds)]


class CompletionRequest(FormFields, SamplingFields, Body):
    """The body of ``POST /v1/completions``. None means: the server's default.

    No ``max_tokens`` is no limit, as llama.cpp and Ollama have it, not OpenAI's 16.
    """

    model: str = Field(min_length=1, max_length=4096)
    prompt: Texts
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    stop: Stops = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    user: str | None = Field(default=None, max_length=MAX_NAME_CHARS)

    # llama.cpp's: generate on past the end, for measuring.
    ignore_eos: bool | None = None

    @field_validator("suffix")
    @classmethod
    def _fits_a_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        prompts: tuple[Prompt, ...] = info.data.get("prompt", ())
        if value and any(isinstance(part, int) for prompt in prompts for part in prompt.parts):
            raise refuse("a text to fill in takes its prompt as text, not as token ids")
        return value

    @field_validator("n")
    @classmethod
    def _not_too_many(cls, value: int | None, info: ValidationInfo) -> int | None:
        if (value or 1) * len(info.data.get("prompt", ())) > MAX_ANSWERS:
            raise refuse(f"more than {MAX_ANSWERS} answers in all")
        return value

    @field_validator("prompt")
    @classmethod
    def _few_enough(cls, value: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        if len(value) > MAX_ANSWERS:
            raise refuse(f"{len(value)} prompts, at most {MAX_ANSWERS} are allowed")
        return value

    @field_validator("best_of")
    @classmethod
    def _all_are_told(cls, value: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n") or 1
        if value is not None and value != n:
            raise refuse(f"this server tells every answer that it makes: leave it out, or say {n}")
        return value

    @field_validator("logprobs")
    @classmethod
    def _of_the_answer(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("echo"):
            raise refuse("the prompt's own are not computed: leave echo out")
        return value
