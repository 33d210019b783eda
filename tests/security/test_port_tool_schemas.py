"""Row N10 of the threat table through tools: a schema nobody can compile is told by its field."""

from __future__ import annotations

import time
from typing import Any, Final

import pytest

from tests.engine_child import importable, plan
from tests.security.port_routes import examples, is_told_rightly, mocked

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

MODEL: Final = "mock:echo"


def _property(schema: object) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


BOMBS: Final[dict[str, dict[str, Any]]] = {
    "a type that is none": _property({"type": "nothing"}),
    "a circle": {"$ref": "#", "type": "object"},
    "a pointer to nothing": _property({"$ref": "#/nowhere"}),
    "a pointer to elsewhere": _property({"$ref": "http://169.254.169.254/schema.json"}),
    "a file": _property({"$ref": "file:///etc/passwd"}),
    "a pattern of brackets": _property({"type": "string", "pattern": "(" * 500}),
    "bounds that contradict": _property({"type": "integer", "minimum": 5, "maximum": 1}),
    "properties that are a list": {"type": "object", "properties": ["a"]},
    "required that is a number": {"type": "object", "required": 3},
}

# What compiles, at whatever length, has to do so soon.
HEAVY: Final = {
    "a pattern of repetitions": r"\d{9999}{9999}",
    "a pattern that backtracks": "(a+)+$",
    "a pattern of choices": "(a|aa){1,5000}b",
    "a pattern of anything": "(.*a){30}",
}


def _asked(path: str, schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "look", "description": "Looks"}
    function = named | {"parameters": schema}
    match path:
        case "/v1/messages":
            tools: list[dict[str, Any]] = [named | {"input_schema": schema}]
            return {"tools": tools, "tool_choice": {"type": "any"}}
        case "/v1/responses":
            return {"tools": [{"type": "function", **function}], "tool_choice": "required"}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_tool_that_must_be_called_and_cannot_be_described_is_refused(path: str) -> None:
    wrong = []
    async with mocked(MODEL, plan(MODEL)) as (_, client):
        assert (await client.post(path, json=examples(MODEL)[path])).status_code == 200
        for name, schema in BOMBS.items():
            body = examples(MODEL)[path] | _asked(path, schema)
            began = time.perf_counter()
            response = await client.post(path, json=body)
            took = time.perf_counter() - began
            document = response.json()
            told = response.status_code == 400 and is_told_rightly(path, document)
            named = told and "tools" in (
                document["error"].get("param") or document["error"]["message"]
            )
            if not named or took > 1.2:
                wrong.append(f"{name}: {response.status_code} {took:.1f} s {response.text[:300]}")
        after = await client.post(path, json=examples(MODEL)[path])

    assert not wrong, "\n".join(wrong)
    assert after.status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_tool_whose_pattern_is_heavy_is_answered_soon(path: str) -> None:
    async with mocked(MODEL, plan(MODEL)) as (_, client):
        assert (await client.post(path, json=examples(MODEL)[path])).status_code == 200
        for name, pattern in HEAVY.items():
            schema = _property({"type": "string", "pattern": pattern})
            body = examples(MODEL)[path] | _asked(path, schema)
            began = time.perf_counter()
            response = await client.post(path, json=body)
            assert response.status_code in (200, 400), (name, response.text[:300])
            assert time.perf_counter() - began <= 1.2, name
