"""Knows no engine: what clients of llama.cpp's server may ask of a completion, and the limits.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md: ``/completion`` and
``/infill``. Numbers that llama.cpp moves into their range are moved here too.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PlainValidator,
    field_validator,
)

from localrun.chat.messages import Prompt
from localrun.engine import limits
from localrun.server.fields import (
    MAX_CHOICES,
    MAX_NAME_CHARS,
    MAX_STOPS,
    MAX_TOKENS,
    Bias,
    Body,
    GrammarText,
    StopText,
    Strict,
    refuse,
)
from localrun.server.forms import FormFields
from localrun.server.images import why_no_bare_image
from localrun.server.prompts import MAX_ANSWERS, TokenId, is_id
from localrun.server.sampling import SamplingFields

MAX_TEMPERATURE: Final = 10.0
MAX_MS: Final = 24 * 3600 * 1000
MAX_FIELDS: Final = 256
# What llama.cpp takes for "draw one": -1, also as 32 bits without a sign.
RANDOM_SEEDS: Final = (-1, 2**32 - 1)


def _within(least: float, most: float) -> AfterValidator:
    def moved(value: float | None) -> float | None:
        return None if value is None else min(max(value, least), most)

    return AfterValidator(moved)


_Share = Annotated[float | None, _within(0.0, 1.0)]
Mixed = str | list[str | TokenId]


def prompts_of(value: object) -> tuple[Prompt, ...]:
    """A string, a list in which ids and strings are mixed, or a list of such prompts."""
    if not isinstance(value, list) or any(map(is_id, value)):
        value = [value]
    if not value:
        raise refuse("an empty list holds no prompt")
    if len(value) > MAX_ANSWERS:
        raise refuse(f"{len(value)} prompts, at most {MAX_ANSWERS} are allowed")
    return tuple(_prompt(at, each) for at, each in enumerate(value))


def _prompt(at: int, value: object) -> Prompt:
    if isinstance(value, dict):
        if images := value.get("multimodal_data"):
            first = images[0] if isinstance(images, list) else images
            raise refuse(f"prompt {at} has images: {why_no_bare_image(first)}")
        value = value.get("prompt_string")
    parts = parts_of(value)
    if parts is None:
        raise refuse(f"prompt {at} is neither a string nor a list of strings and token ids")
    if not any(part != "" for part in parts):
        raise refuse(f"prompt {at} is empty: there is nothing to go on from")
    return Prompt(tuple(part for part in parts if part != ""))


def parts_of(value: object) -> tuple[str | int, ...] | None:
    """A string, or a list of strings and token ids; None where it is neither."""
    if isinstance(value, str):
        return (value,)
    parts = value if isinstance(value, list) else [None]
    found = tuple(part for part in parts if isinstance(part, str) or is_id(part))
    return found if len(found) == len(parts) else None


def _pairs(bias: object) -> object:
    """``[[id, bias], ...]`` as the object that it may also be; false forbids a token."""
    if isinstance(bias, list):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in bias):
            raise refuse("not a list of pairs of a token id and a bias")
        bias = {str(token): value for token, value in bias}
    if isinstance(bias, dict):
        return {name: -limits.MAX_BIAS if x is False else x for name, x in bias.items()}
    return bias


def _words(stop: object) -> object:
    """llama.cpp looks for no empty string."""
    words = [stop] if isinstance(stop, str) else stop
    return [word for word in words if word != ""] if isinstance(words, list) else words


def _text_or_none(text: object) -> object:
    return None if text == "" else text


class LlamaFields(FormFields, SamplingFields, Body):
    """What ``/completion`` and ``/infill`` both take. None means: the server's default.

    Taken and without effect, as nothing here depends on it: ``cache_prompt`` and ``id_slot`` (what
    is computed is kept for whoever asks alike), ``n_keep``, ``n_discard`` (no text is ever shifted
    out of the context). Of ``samplers`` those that are not named are left out; their order is ours,
    and unknown names mean nothing, as in llama.cpp.
    """

    model: str = Field(default="", max_length=4096)
    stream: bool | None = None
    n_predict: int | None = Field(
        default=None,
        ge=-1,
        le=MAX_TOKENS,
        validation_alias=AliasChoices("n_predict", "max_completion_tokens", "max_tokens"),
    )
    n: int | None = Field(
        default=None, ge=1, le=MAX_CHOICES, validation_alias=AliasChoices("n_cmpl", "n")
    )
    stop: Annotated[
        Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
        BeforeValidator(_words, json_schema_input_type=str | list[str] | None),
    ] = None
    n_indent: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    n_probs: int | None = Field(
        default=None,
        ge=0,
        le=limits.MAX_LOGPROBS,
        validation_alias=AliasChoices("n_probs", "logprobs"),
    )
    post_sampling_probs: bool | None = None
    samplers: (
        Annotated[list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]], Field(max_length=64)]
        | Annotated[str, Field(max_length=64)]
        | None
    ) = None
    ignore_eos: bool | None = None
    return_tokens: bool | None = None
    response_fields: (
        Annotated[
            list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]], Field(max_length=MAX_FIELDS)
        ]
        | None
    ) = None
    t_max_prompt_ms: int | None = Field(default=None, ge=-1, le=MAX_MS)
    t_max_predict_ms: int | None = Field(default=None, ge=-1, le=MAX_MS)
    cache_prompt: bool | None = None
    id_slot: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    grammar: Annotated[GrammarText | None, BeforeValidator(_text_or_none)] = None

    # Their ranges are wider than OpenAI's.
    temperature: Annotated[float | None, _within(0.0, MAX_TEMPERATURE)] = None
    top_k: Annotated[int | None, _within(0, MAX_TOKENS)] = Field(default=None, le=MAX_TOKENS)
    top_p: _Share = None
    min_p: _Share = None
    typical_p: _Share = None
    xtc_probability: _Share = None
    xtc_threshold: _Share = None
    logit_bias: Annotated[
        Bias,
        BeforeValidator(
            _pairs, json_schema_input_type=dict[str, float] | list[tuple[int, float]] | None
        ),
    ] = None

    # What would change the draw, and is not done here.
    mirostat: int | None = None
    dynatemp_range: float | None = None
    top_n_sigma: float | None = None
    adaptive_target: float | None = None
    lora: list[Any] | None = None

    @field_validator("seed")
    @classmethod
    def _drawn(cls, value: int | None) -> int | None:
        return None if value in RANDOM_SEEDS else value

    @field_validator("mirostat", "dynatemp_range", "lora", "post_sampling_probs")
    @classmethod
    def _off(cls, value: object) -> object:
        if value:
            raise refuse("this server does not do that: leave it out")
        return value

    @field_validator("top_n_sigma", "adaptive_target")
    @classmethod
    def _below_zero(cls, value: float | None) -> float | None:
        if value is not None and value >= 0:
            raise refuse("this server does not do that: leave it out, or say -1")
        return value


class CompletionRequest(LlamaFields):
    """The body of ``POST /completion``."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(prompts_of, json_schema_input_type=Mixed | list[Mixed]),
    ]


class Extra(Strict):
    """Text of another place; ``time`` is when an editor came by there."""

    text: str
    filename: str | None = Field(default=None, max_length=4096)


class InfillRequest(LlamaFields):
    """The body of ``POST /infill``. ``prompt`` is how the line of the gap begins."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[Extra], Field(max_length=4096)] | None = None
    prompt: str | None = None
