"""What nobody can mean of Anthropic's API is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localrun.errors import GrammarError
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.unit.test_server_anthropic import COUNT, MESSAGES, client_of, question
from tests.unit.test_server_anthropic_asked import (
    IMAGE,
    SCHEMA,
    WEATHER,
    document,
    result,
    text,
    user,
)

HI = {"role": "user", "content": "Hi"}


def only(block: Any) -> dict[str, Any]:
    return {"messages": [HI, user(text("a"), block)]}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model:"),
    "an empty model": ({"model": ""}, "model:"),
    "no messages": ({"messages": []}, "messages:"),
    "messages of no list": ({"messages": "Hi"}, "messages:"),
    "a message of no object": ({"messages": ["Hi"]}, "messages[0]:"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role:"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content:"),
    "content of a number": ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content:"),
    "a block of no object": (only("a"), "messages[1].content[1]:"),
    "a block of no type": (only({"text": "a"}), "messages[1].content[1]:"),
    "an unknown block": (only({"type": "video"}), "messages[1].content[1]: blocks of the type"),
    "a container's file": (only({"type": "container_upload"}), "messages[1].content[1]:"),
    "a text of none": (only({"type": "text"}), "messages[1].content[1].text:"),
    "a text of a number": (only({"type": "text", "text": 1}), "messages[1].content[1].text:"),
    "an image": (
        only(IMAGE),
        "messages[1].content[1].source: this model takes no images: it has no",
    ),
    "an image from elsewhere": (
        only({"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}),
        "messages[1].content[1].source: URLs are never fetched",
    ),
    "an uploaded image": (
        only({"type": "image", "source": {"type": "file", "file_id": "f"}}),
        "messages[1].content[1].source: URLs are never fetched",
    ),
    "a PDF": (
        only(document({"type": "base64", "media_type": "application/pdf", "data": "x"})),
        "messages[1].content[1].source: a document comes as text or content",
    ),
    "a document from elsewhere": (
        only(document({"type": "url", "url": "file:///etc/passwd"})),
        "messages[1].content[1].source:",
    ),
    "a document with an image": (
        only(document({"type": "content", "content": [IMAGE]})),
        "messages[1].content[1].source.content[0].type:",
    ),
    "a call of the user's": (
        only({"type": "tool_use", "id": "a", "name": "f", "input": {}}),
        "messages[1].content: block 1 is a tool_use",
    ),
    "a result of the assistant's": (
        {"messages": [{"role": "assistant", "content": [result("a")]}]},
        "messages[0].content: block 0 is a tool_result",
    ),
    "a call without input": (
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}
            ]
        },
        "messages[0].content[0].input:",
    ),
    "a call with text as input": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "{}"}],
                }
            ]
        },
        "messages[0].content[0].input:",
    ),
    "a result of nobody's": (
        only({"type": "tool_result", "content": "a"}),
        "messages[1].content[1].tool_use_id:",
    ),
    "a result of a number": (only(result(1)), "messages[1].content[1].content:"),
    "a result with a bad block": (
        only(result([{"type": "text"}])),
        "messages[1].content[1].content[0].text:",
    ),
    "a beginning with a space at its end": (
        {"messages": [HI, {"role": "assistant", "content": "It is "}]},
        "messages[1].content: final assistant content cannot end with trailing whitespace",
    ),
    "a system of a number": ({"system": 1}, "system:"),
    "a system with an image": ({"system": [IMAGE]}, "system[0].type:"),
    "no tokens": ({"max_tokens": 0}, "max_tokens:"),
    "tokens in words": ({"max_tokens": "9"}, "max_tokens:"),
    "too many tokens": ({"max_tokens": 2**63}, "max_tokens:"),
    "too hot": ({"temperature": 2.1}, "temperature:"),
    "a negative top_k": ({"top_k": -1}, "top_k:"),
    "a top_p above 1": ({"top_p": 1.1}, "top_p:"),
    "an empty stop": ({"stop_sequences": [""]}, "stop_sequences[0]:"),
    "too many stops": ({"stop_sequences": ["a"] * 17}, "stop_sequences:"),
    "a stream of a number": ({"stream": 1}, "stream:"),
    "tools of no list": ({"tools": {}}, "tools:"),
    "too many tools": ({"tools": [WEATHER] * 513}, "tools:"),
    "a tool without a name": ({"tools": [WEATHER, {"input_schema": {}}]}, "tools[1].name:"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema:"),
    "a tool with a schema of text": (
        {"tools": [{"name": "f", "input_schema": "{}"}]},
        "tools[0].input_schema:",
    ),
    "an unknown choice": ({"tool_choice": {"type": "all"}}, "tool_choice.type:"),
    "a choice of text": ({"tool_choice": "auto"}, "tool_choice:"),
    "a choice of no name": (
        {"tools": [WEATHER], "tool_choice": {"type": "tool"}},
        "tool_choice.name:",
    ),
    "a choice of no tool": (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}},
        "tool_choice.name:",
    ),
    "an unknown way to think": ({"thinking": {"type": "hard"}}, "thinking.type:"),
    "no room to think": (
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        "thinking.budget_tokens:",
    ),
    "an unknown form": (
        {"output_config": {"format": {"type": "xml"}}},
        "output_config.format.type",
    ),
    "a form of no schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema:",
    ),
    "two forms": (
        {
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "output_format": {"type": "json_schema", "schema": SCHEMA},
        },
        "output_format:",
    ),
    "a long user": ({"metadata": {"user_id": "a" * 513}}, "metadata.user_id:"),
    "an MCP server": (
        {"mcp_servers": [{"type": "url", "url": "http://localhost", "name": "x"}]},
        "mcp_servers:",
    ),
}
# What only generating looks at.
ANSWERS = ("max_tokens", "temperature", "top_k", "top_p", "stop_sequences", "stream", "metadata")


@pytest.mark.parametrize(("fields", "named"), BAD.values(), ids=BAD.keys())
async def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    chat = FakeChat()
    body = json.dumps(question(**fields)).encode()
    headers = {"content-type": "application/json"}
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        responses = [await client.post(MESSAGES, content=body, headers=headers)]
        if not any(field in fields for field in ANSWERS):
            responses.append(await client.post(COUNT, content=body, headers=headers))

    for response in responses:
        assert response.status_code == 400, response.text
        error = response.json()
        assert error["type"] == "error"
        assert error["error"]["type"] == "invalid_request_error"
        assert named in error["error"]["message"]
    assert chat.asked == []


FORMED: dict[str, dict[str, Any]] = {
    "tools": {"tools": [WEATHER]},
    "output_config.format": {
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}
    },
    "output_format": {"output_format": {"type": "json_schema", "schema": SCHEMA}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("field", "fields"), FORMED.items(), ids=FORMED.keys())
async def test_a_schema_that_nobody_can_follow_names_where_it_stands(
    field: str, fields: dict[str, Any], stream: bool
) -> None:
    chat = FakeChat(error=GrammarError("json_schema", "no such type"))
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        response = await client.post(MESSAGES, json=question(stream=stream, **fields))

    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(f"{field}: json_schema: no such type")
