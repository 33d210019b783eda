"""Knows no model: tools that a request declares, as JSON schemas of functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from localrun.server.fields import refuse

MAX_TOOLS = 512
_MOST_LISTED = 20
# A name is written between a family's marks, quotes and tags.
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def functions_of(tools: object) -> object:
    """Those tools that are functions. Agents send others that only their own maker runs."""
    if not isinstance(tools, list):
        return tools
    kept = []
    for at, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise refuse(f"tool {at} is not an object")
        if tool.get("type") == "function":
            kept.append(_checked(at, tool))
    return kept


def _checked(at: int, tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        raise refuse(f"tool {at} has no function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise refuse(f"tool {at} has no name of 1 to 128 letters, digits and _ . : / -")
    if parameters is not None and not isinstance(parameters, dict):
        raise refuse(f"tool {at} ({name[:80]}): its parameters are no JSON schema")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise refuse(f"tool {at} ({name[:80]}): its description is no text")
    return tool


Tools = Annotated[
    Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None,
    BeforeValidator(functions_of, json_schema_input_type=list[dict[str, Any]] | None),
]


def function_tool(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A declaration as chat templates expect it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def listed(kinds: Iterable[str]) -> str:
    """For the log: a client chose these words, and could write lines of its own with them."""
    shown = sorted(ascii(kind) if ascii(kind)[1:-1] != kind else kind for kind in kinds)
    return ", ".join(kind[:80] for kind in shown[:_MOST_LISTED])
