"""Knows no dialect: kinds of JSON values that requests of several dialects hold, and their limits.

Unknown fields are ignored, as clients grow new ones; a known field that this server cannot honour
is refused by name rather than dropped. Every number has a range.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
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


def refuse(message: str) -> PydanticCustomError:
    # Braces would be taken for a template's.
    return PydanticCustomError("refused", "{why}", {"why": message})


def list_of(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
    BeforeValidator(list_of, json_schema_input_type=str | list[str] | None),
]


def short_enough(breaker: str) -> str:
    if len(breaker.encode()) > limits.MAX_BREAKER_BYTES:
        raise refuse(f"longer than {limits.MAX_BREAKER_BYTES} bytes")
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
            raise refuse(f"{str(name)[:40]!r} is not a token id")
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


class Body(Strict):
    """A request's whole body. All its strings are text: ``body.parsed`` refuses halves of pairs."""


def field_name(location: tuple[int | str, ...]) -> str:
    """A pydantic location as a client writes it: ``messages[0].content``."""
    # Among the names are tags of union members, which no client wrote: `tool_choice.str`.
    parts = [part for part in location if part not in ("body", "str") and "[" not in str(part)]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return name.removeprefix(".")
