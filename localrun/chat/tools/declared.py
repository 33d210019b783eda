"""Knows no format: the tools of a request, and what their schemas say of one argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_DEPTH_MAX: Final = 8
_REFERENCE_MAX: Final = 16
STRING: Final = frozenset({"string"})
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}


@dataclass(frozen=True, slots=True)
class Tool:
    """One declared function. ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Any]:
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        found = self.parameters.get("required")
        return frozenset(map(str, found)) if isinstance(found, list | tuple) else frozenset()

    def types(self, argument: str) -> frozenset[str]:
        """JSON's names of what the argument may be; empty where its schema does not say.

        One that is not declared is a string.
        """
        schema = self.properties.get(argument)
        return STRING if schema is None else _types(schema, self.parameters, 0)


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request, by name."""

    declared: tuple[Tool, ...]
    by_name: Mapping[str, Tool] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {tool.name: tool for tool in self.declared})

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def types(self, name: str, argument: str) -> frozenset[str]:
        """As ``Tool.types``; the arguments of a tool that was not declared are strings."""
        tool = self.by_name.get(name)
        return STRING if tool is None else tool.types(argument)


def declared(tools: Sequence[Mapping[str, Any]]) -> Tools:
    """The tools of declarations, ``{"type": "function", "function": {"name": …}}`` or bare."""
    functions = [tool.get("function", tool) for tool in tools]
    return Tools(
        tuple(
            Tool(function["name"], function.get("description") or "", _schema(function))
            for function in functions
            if isinstance(function, Mapping) and isinstance(function.get("name"), str)
        )
    )


def _schema(function: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = function.get("parameters")
    return schema if isinstance(schema, Mapping) else {}


def _types(schema: object, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > _DEPTH_MAX:
        return frozenset()
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_referred(reference, root), root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list | tuple):
        return frozenset(each for each in kind if isinstance(each, str))
    if "const" in schema:
        return frozenset({_type_of(schema["const"])})
    if isinstance(values := schema.get("enum"), list | tuple):
        return frozenset(_type_of(each) for each in values)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(key), list | tuple):
            found = [_types(option, root, depth + 1) for option in options]
            return frozenset().union(*found) if all(found) or key == "allOf" else frozenset()
    return frozenset({"object"}) if "properties" in schema else frozenset()


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    """What a reference within the schema names; nothing where it names nothing."""
    place: object = root
    for part in reference.removeprefix("#").split("/")[1:_REFERENCE_MAX]:
        part = part.replace("~1", "/").replace("~0", "~")
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    return _NAMES.get(type(value), "object")
