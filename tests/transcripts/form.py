"""Knows no reader: what a transcript is, and the tools that all of them were told of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def function(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """A declaration as clients send it."""
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {
        "type": "function",
        "function": {"name": name, "description": f"Does {name}.", "parameters": schema},
    }


TOOLS: tuple[Mapping[str, Any], ...] = (
    function(
        "get_weather",
        ("city",),
        city={"type": "string"},
        days={"type": "integer"},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    function("get_time"),
    function(
        "write_file",
        ("path", "content"),
        path={"type": "string"},
        content={"type": "string"},
        mode={"anyOf": [{"type": "string"}, {"type": "null"}]},
    ),
    function(
        "plan",
        ("steps",),
        steps={"type": "array", "items": {"$ref": "#/$defs/step"}},
        options={"type": "object"},
        dry={"type": "boolean"},
        limit={"type": ["number", "string"]},
        note={},
    ),
)


@dataclass(frozen=True)
class Said:
    """What is read out of an answer; calls are (name, arguments' text, id of the model's)."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Transcript:
    """An answer as a model writes it.

    template: as much of a chat template as selects the family.
    tail: the end of the prompt.
    whole: the arguments of every call are valid JSON.
    """

    template: str | None
    raw: str
    said: Said
    tail: str = ""
    tools: tuple[Mapping[str, Any], ...] = TOOLS
    whole: bool = True


def calls(*made: tuple[str, ...]) -> Said:
    return Said(calls=made)
