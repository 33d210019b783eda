"""Knows no route by name: our OpenAPI document, with every status that a route may answer.

FastAPI tells of 200 and of its own 422, which nobody here sends. What is refused, and in which
shape each dialect says so, is the same for all routes of a dialect and is added here, once.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI

from localrun.errors import LocalrunError
from localrun.server.errors import Shape, anthropic_shape, ollama_shape, openai_shape, shape_of
from localrun.server.guards import OPEN_PATH

_TEXT: Final = {"type": "string"}
_SHAPES: Final[dict[Shape, tuple[str, dict[str, Any]]]] = {
    openai_shape: (
        "OpenAIError",
        {
            "error": {
                "type": "object",
                "required": ["message", "type", "code", "param"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "code": {"type": ["string", "null"]},
                    "param": {"type": ["string", "null"]},
                },
            }
        },
    ),
    anthropic_shape: (
        "AnthropicError",
        {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
        },
    ),
    ollama_shape: ("OllamaError", {"error": _TEXT}),
}
# What the door answers before any route is asked, with a body and without.
_AT_THE_DOOR: Final = {401, 429, 431}
_OF_A_BODY: Final = {400, 413, 415}
_WITHOUT_A_BODY: Final = 403
_JSON: Final = "application/json"


class DocumentedAPI(FastAPI):
    """FastAPI whose document tells of the errors too."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def statuses() -> frozenset[int]:
    """Those that errors of the tree are told with."""
    found, kinds = set(), [LocalrunError]
    while kinds:
        kind = kinds.pop()
        found.add(kind.http_status)
        kinds += kind.__subclasses__()
    return frozenset(found)


def _complete(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name, properties in _SHAPES.values():
        schemas[name] = {
            "type": "object",
            "required": sorted(properties),
            "properties": properties,
        }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            _tell_errors(path, operation)
            _tell_streams(path, operation, schemas)


def _tell_errors(path: str, operation: dict[str, Any]) -> None:
    shape = shape_of(path)
    name, _ = _SHAPES[shape]
    body = {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    told = {431, 500} if path == OPEN_PATH else statuses() | _AT_THE_DOOR
    if "requestBody" in operation:
        told |= _OF_A_BODY
    for status in sorted(told):
        described = {"description": _phrase(status), "content": body}
        operation["responses"].setdefault(str(status), described)
    forbidden = {"description": "Host or Origin are not ours; nothing is said"}
    operation["responses"].setdefault(str(_WITHOUT_A_BODY), forbidden)


def _tell_streams(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """A body with a field ``stream`` may be answered by one."""
    asked = operation.get("requestBody", {}).get("content", {}).get(_JSON, {}).get("schema", {})
    name = asked.get("$ref", "").rpartition("/")[2]
    if "stream" in schemas.get(name, {}).get("properties", {}):
        lines = shape_of(path) is ollama_shape
        kind = "application/x-ndjson" if lines else "text/event-stream"
        operation["responses"]["200"]["content"][kind] = {"schema": {}}


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
