"""Knows no client: what each of them asks, so that their answers can be held to the same."""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

from pydantic import BaseModel
from served import N_CTX

QUESTION = "Name the capital of France."
SHORT = 24
# Enough for every form below at a small model's longest.
FORM_TOKENS = 96
TOO_LONG = "word " * (N_CTX + 200)
UNKNOWN = "no-such-model"


class City(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    days: Literal[1, 2, 3]


CITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = "get_weather"
WEATHER_TEXT = "The weather of a city for some days."

ALIKE = ("A cat sleeps on the sofa.", "The kitten naps on the couch.")
UNLIKE = "The central bank raised its interest rate."


def check_city(arguments: dict[str, Any]) -> None:
    """What a forced call or form must be, whatever the model wanted to say."""
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Paris", "Rome", "Oslo")
    assert arguments["days"] in (1, 2, 3)


def check_too_long(message: str) -> None:
    """A prompt over the context is refused with both numbers."""
    numbers = [int(word) for word in "".join(c if c.isdigit() else " " for c in message).split()]
    assert N_CTX in numbers or N_CTX - 1 in numbers, message
    assert any(number > N_CTX for number in numbers), message


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def check_likeness(vectors: list[list[float]], dimensions: int) -> None:
    """Vectors of ``ALIKE`` and ``UNLIKE``."""
    first, second, third = vectors
    assert [len(vector) for vector in vectors] == [dimensions] * 3
    assert cosine(first, second) > 0.5 > cosine(first, third)
