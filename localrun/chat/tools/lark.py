"""Knows no family: parts of a grammar that holds a call.

The notation is llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
Strings stand for their characters, never for control tokens: a mask allows those nowhere. What is
forced is spelled out all the same, because a reader cannot tell the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from localrun.chat.tools.declared import Tool
from localrun.chat.tools.json_text import escaped
from localrun.engine.grammar.gbnf import quoted
from localrun.errors import RequestError

# A weak model that may repeat calls does; so many are more than any sensible answer has.
SEVERAL_MAX: Final = 8
_JSON_OPTIONS: Final = {
    # As the engine's own JSON grammars: small models fill pages with more space than this.
    "whitespace_pattern": r"\x20|\n[\x20\t]{0,20}",
    "item_separator": ",",
    "key_separator": ":",
    "lenient": True,
}
# With one of these, what an object may hold is said elsewhere than in its properties.
_OPEN: Final = frozenset(
    {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if"}
)


def literal(text: str) -> str:
    """A text, as Lark writes it."""
    return quoted(text)


def json_name(tool: Tool) -> str:
    """The function's name as it stands within a JSON string."""
    return escaped(tool.name)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of all arguments, with nothing in them that it does not name."""
    schema = {"type": "object", **tool.parameters}
    if not _OPEN & schema.keys() and tool.required <= tool.properties.keys():
        schema.setdefault("properties", {})
        schema["additionalProperties"] = False
    return schema


def argument_schema(tool: Tool, name: str) -> dict[str, Any]:
    """The schema of one argument, with the definitions that it may refer to."""
    schema = tool.properties[name]
    if not isinstance(schema, Mapping):
        return {}
    kept = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    return kept | dict(schema)


def json_rule(name: str, schema: Mapping[str, Any]) -> str:
    """A rule for JSON of ``schema``.

    Raises:
        RequestError: the schema is not JSON.
    """
    try:
        text = json.dumps({**schema, "x-guidance": _JSON_OPTIONS})
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"tools: a schema is not JSON: {error}") from error
    return f"{name}: %json {text}"


def alternatives(
    tools: Sequence[Tool], before: Callable[[Tool], str], behind: str = ""
) -> tuple[str, tuple[str, ...]]:
    """A call of any of ``tools``, its arguments one piece of JSON between two texts, and the rules
    for those arguments."""
    end = f" {literal(behind)}" if behind else ""
    calls = [f"{literal(before(tool))} a{at}{end}" for at, tool in enumerate(tools)]
    rules = [json_rule(f"a{at}", arguments_schema(tool)) for at, tool in enumerate(tools)]
    return " | ".join(calls), tuple(rules)


def repeated(one: str, between: str) -> str:
    """``one``, and perhaps more with ``between`` in front of each."""
    return f"{one} ({literal(between)} {one}){{0,{SEVERAL_MAX - 1}}}"
