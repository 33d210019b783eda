"""Answers of the Responses API, asked for in process and checked by the openai package's types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels

BASE = "http://127.0.0.1:7411"
PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@asynccontextmanager
async def client_of(chat: FakeChat) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server that has the model."""
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=chat)))
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


async def ask(chat: FakeChat, **fields: Any) -> httpx2.Response:
    async with client_of(chat) as client:
        return await client.post(PATH, json={"model": "fake", "input": "Hi"} | fields)


async def whole(chat: FakeChat, **fields: Any) -> dict[str, Any]:
    """The document of an answer, as the openai package reads it."""
    response = await ask(chat, **fields)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    Response.model_validate(document)
    return document


def parsed(block: str) -> dict[str, Any]:
    """One event, as the openai package reads it."""
    name, data = block.split("\n")
    document: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {document['type']}"
    if document["type"] == "response.failed":
        # Codex compacts by a code that the package does not know.
        known = document["response"] | {"error": {"code": "server_error", "message": ""}}
        EVENT.validate_python(document | {"response": known})
    else:
        EVENT.validate_python(document)
    return document


async def streamed(chat: FakeChat, **fields: Any) -> list[dict[str, Any]]:
    """The events of an answer, as the openai package reads them."""
    response = await ask(chat, **(fields | {"stream": True}))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    told = [parsed(block) for block in blocks]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types, without what begins them all."""
    return [event["type"].removeprefix("response.") for event in events]


def deltas(events: list[dict[str, Any]]) -> str:
    """All that was told piece by piece."""
    return "".join(event["delta"] for event in events if event["type"].endswith(".delta"))


def outputs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The items without what is drawn anew each time."""
    return [
        {key: value for key, value in item.items() if key != "id"} for item in document["output"]
    ]
