"""Knows no dialect: calls of tools: those of an answer gathered, and arguments as objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BeforeValidator
from pydantic_core import from_json

from localrun.chat.messages import CallDelta
from localrun.server.body import finite
from localrun.server.fields import refuse

# A string, one that was cut too, or a number of more digits than any reader takes.
_TOKEN: Final = re.compile(r'(?P<text>"[^"\\]*(?:\\.[^"\\]*)*"?)|-?[0-9]{400,}[0-9.eE+-]*', re.S)
# Escapes in their order, so that none begins within another. The first kind is a whole pair.
_ESCAPE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.S,
)
_HALVES: Final = re.compile("[\ud800-\udfff]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class GatheredCalls:
    """Iterates (id, name, arguments) in the order of the calls; ``arguments`` is JSON text."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str, list[str]]] = {}

    def take(self, call: CallDelta) -> None:
        if call.index not in self._calls:
            self._calls[call.index] = call.id, call.name, []
        self._calls[call.index][2].append(call.arguments)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        for _, (id_, name, arguments) in sorted(self._calls.items()):
            yield id_, name, "".join(arguments) or "{}"


def arguments_of(arguments: str, *, cut: bool = False) -> dict[str, Any] | None:
    """A call's arguments as an object that can be told as JSON; None where they are none, as a
    model may write them. Of arguments that were ``cut`` those that are there.

    A number that JSON lacks (NaN, infinity, 1e999) becomes null, half a surrogate pair a mark of
    replacement: the rest of a call is not lost by them.
    """
    text = _HALVES.sub(_REPLACEMENT, arguments or "{}")
    value = _read(text, cut=cut, strict=True)
    if value is None or not finite(value):
        value = _read(_TOKEN.sub(_repaired, text), cut=cut, strict=False)
        _null_the_infinite(value)
    return value if isinstance(value, dict) else None


def _read(text: str, *, cut: bool, strict: bool) -> Any:
    """None where it is no JSON."""
    try:
        return from_json(text, allow_inf_nan=not strict, allow_partial=cut)
    except ValueError:
        return None


def _repaired(token: re.Match[str]) -> str:
    if token["text"] is None:
        return "null"
    return _ESCAPE.sub(lambda found: r"\ufffd" if found["half"] else found[0], token["text"])


def _null_the_infinite(document: object) -> None:
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            places = list(value.items() if isinstance(value, dict) else enumerate(value))
            for at, each in places:
                if isinstance(each, float) and not math.isfinite(each):
                    value[at] = None
            left += [each for _, each in places]


def object_of(arguments: object) -> object:
    """The arguments of a call that a request tells as an object. They travel as a string that holds
    JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise refuse("not JSON in a string") from error
    if not isinstance(value, dict):
        raise refuse("not a JSON object in a string")
    return value


JsonObject = Annotated[
    dict[str, Any], BeforeValidator(object_of, json_schema_input_type=str | dict[str, Any])
]
