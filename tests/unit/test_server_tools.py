"""Tools as each dialect declares them: of which a model is told, and which are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import client_of

HI = [{"role": "user", "content": "Hi"}]
FIRST = {"type": "function", "function": {"name": "first", "parameters": {}}}


def _wrapped(name: Any) -> dict[str, Any]:
    return {"tools": [FIRST, {"type": "function", "function": {"name": name}}]}


def _bare(name: Any) -> dict[str, Any]:
    return {"tools": [{"name": "first", "input_schema": {}}, {"name": name, "input_schema": {}}]}


# Path, a body of two tools of which the second has a name, and what that field is called.
DIALECTS: dict[str, tuple[str, Callable[[Any], dict[str, Any]], str]] = {
    "chat": ("/v1/chat/completions", _wrapped, "tools[1].function.name"),
    "a template": ("/apply-template", _wrapped, "tools[1].function.name"),
    "messages": ("/v1/messages", _bare, "tools[1].name"),
    "a count": ("/v1/messages/count_tokens", _bare, "tools[1].name"),
    "ollama": ("/api/chat", _wrapped, "tools[1].function.name"),
}
# Those that cannot be read back out of an answer.
STRANGE: dict[str, Any] = {
    "empty": "",
    "a space": "get weather",
    "quotes": 'a"b',
    "a tag": "</tool_call>",
    "a mark": "<|im_end|>",
    "a line": "a\nb",
    "no ASCII": "für",
    "braces": "{name}",
    "too long": "a" * 129,
    "a number": 1,
    "none": None,
}


async def post(chat: FakeChat, path: str, fields: dict[str, Any]) -> tuple[int, str]:
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        body = {"model": "fake", "messages": HI, "stream": False} | fields
        response = await client.post(path, json=body)
    return response.status_code, response.text


@pytest.mark.parametrize(("path", "of", "field"), DIALECTS.values(), ids=DIALECTS.keys())
@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE.keys())
async def test_a_name_that_no_answer_can_hold_is_refused_by_its_field(
    path: str, of: Callable[[Any], dict[str, Any]], field: str, name: Any
) -> None:
    chat = FakeChat()
    status, text = await post(chat, path, of(name))

    assert status == 400, text
    assert f"{field}: " in text
    assert len(text) < 400
    assert chat.asked == []


@pytest.mark.parametrize(("path", "of", "field"), DIALECTS.values(), ids=DIALECTS.keys())
@pytest.mark.parametrize("name", ["a", "mcp__x__y", "ns.f", "a:b/c-d", "a" * 128])
async def test_a_name_that_an_answer_can_hold_is_taken(
    path: str, of: Callable[[Any], dict[str, Any]], field: str, name: str
) -> None:
    status, text = await post(FakeChat(), path, of(name))

    assert status == 200, text


BAD: dict[str, tuple[Any, str]] = {
    "no object": ("f", "tools[0]: not an object"),
    "no function": ({"type": "function"}, "tools[0].function: "),
    "a function of a word": ({"type": "function", "function": "f"}, "tools[0].function: "),
    "no name": ({"type": "function", "function": {}}, "tools[0].function.name: "),
    "parameters of a list": (
        {"type": "function", "function": {"name": "f", "parameters": []}},
        "tools[0].function.parameters: ",
    ),
    "a description of a number": (
        {"type": "function", "function": {"name": "f", "description": 1}},
        "tools[0].function.description: ",
    ),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize(("tool", "named"), BAD.values(), ids=BAD.keys())
async def test_what_is_no_tool_is_refused_by_its_field(path: str, tool: Any, named: str) -> None:
    status, text = await post(FakeChat(), path, {"tools": [tool]})

    assert (status, named in text) == (400, True), text


async def test_a_tool_reaches_the_template_as_it_was_sent() -> None:
    chat = FakeChat()
    function = {"name": "f", "parameters": {}, "strict": True}
    strict = {"type": "function", "function": function, "x": [1]}
    bare = {"function": {"name": "g"}}
    status, _ = await post(chat, "/v1/chat/completions", {"tools": [strict, bare]})

    assert status == 200
    assert chat.asked[0][1].tools == (strict, {"type": "function", **bare})


# What each dialect is sent beside a tool of the client's own.
SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"tools": [FIRST, {"type": "web_search"}, {"type": "a\nb"}]}),
    "ollama": ("/api/chat", {"tools": [{"type": "a\nb"}, FIRST, {"type": "web_search"}]}),
    "messages": (
        "/v1/messages",
        {
            "tools": [
                {"name": "first", "input_schema": {}},
                {"type": "a\nb", "name": "x y"},
                {"type": "web_search", "name": "x"},
            ]
        },
    ),
    "responses": (
        "/v1/responses",
        {
            "input": "Hi",
            "tools": [
                {"type": "function", "name": "first"},
                {"type": "web_search"},
                {"type": "a\nb"},
            ],
        },
    ),
}


@pytest.mark.parametrize(("path", "fields"), SERVERS.values(), ids=SERVERS.keys())
async def test_tools_that_only_servers_run_are_left_out_with_the_same_warning_everywhere(
    path: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    chat = FakeChat()
    with caplog.at_level(logging.WARNING):
        status, text = await post(chat, path, fields)

    assert status == 200, text
    assert [tool["function"]["name"] for tool in chat.asked[0][1].tools] == ["first"]
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert said == [r"tools that nobody here runs are left out: 'a\nb', web_search"]


async def test_where_nothing_is_left_out_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        await post(FakeChat(), "/v1/chat/completions", {"tools": [FIRST]})

    assert [record.message for record in caplog.records if "left out" in record.message] == []
