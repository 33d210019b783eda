"""The arguments of calls as a model writes them: what is no JSON harms no answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.server.app import create_app
from localrun.server.calls import arguments_of
from tests.fake_chat import FakeChat, FakeModels, ending

READ: dict[str, tuple[str, dict[str, Any] | None]] = {
    "nothing": ("", {}),
    "an object": ('{"a": [1, "\\u00e4"]}', {"a": [1, "ä"]}),
    "a list": ("[1]", None),
    "cut": ('{"a": 1, "b": [2, ', None),
    "no number": ('{"a": NaN, "b": 1}', {"a": None, "b": 1}),
    "infinity": ('{"a": -Infinity, "b": ["Infinity", 1.5]}', {"a": None, "b": ["Infinity", 1.5]}),
    "beyond doubles": ('{"a": [{"b": 1e999}, [-1e999]]}', {"a": [{"b": None}, [None]]}),
    "the first half of a pair": ('{"a": "x\\uD800y"}', {"a": "x\ufffdy"}),
    "the second half of a pair": ('{"\\udfffkey": "z"}', {"\ufffdkey": "z"}),
    "halves in the wrong order": ('{"a": "\\udc00\\ud800"}', {"a": "\ufffd\ufffd"}),
    "a whole pair beside a half": ('{"a": "\\ud83d\\ude00\\ud83d"}', {"a": "😀\ufffd"}),
    "half a pair and no escape": ('{"a": NaN, "b": "\\\\ud800"}', {"a": None, "b": "\\ud800"}),
    "half a pair unescaped": ('{"a": "\ud800", "b": 1}', {"a": "\ufffd", "b": 1}),
    "5,000 digits": (f'{{"a": {"1" * 5000}, "b": 1}}', {"a": None, "b": 1}),
    "5,000 digits of a text": (f'{{"a": NaN, "b": "{"1" * 5000}"}}', {"a": None, "b": "1" * 5000}),
    "no number and more": ('{"a": NaN} {', None),
    "a list of no number": ("[NaN]", None),
    "no number alone": ("NaN", None),
    "very deep": ("[" * 5000, None),
    "very deep in an object": ('{"a":' * 5000, None),
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ.keys())
def test_arguments_are_an_object_that_json_can_tell_or_nothing(
    text: str, expected: dict[str, Any] | None
) -> None:
    assert arguments_of(text) == expected


def test_of_arguments_that_were_cut_those_are_told_that_came() -> None:
    assert arguments_of('{"a": 1, "b": [2, ', cut=True) == {"a": 1, "b": [2]}
    assert arguments_of('{"a": NaN, "b": [2, ', cut=True) == {"a": None, "b": [2]}


def test_arguments_of_a_megabyte_are_repaired_at_once() -> None:
    text = '{"a": "' + r"\ud800\\" * 100_000 + '", "b": [' + "NaN," * 50_000 + "1]}"
    began = time.process_time()
    found = arguments_of(text)

    assert found is not None
    assert found["a"] == "\ufffd\\" * 100_000
    assert found["b"] == [None] * 50_000 + [1]
    assert time.process_time() - began < 2


TOOL = {"name": "f", "description": "", "parameters": {"type": "object"}}
HI = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        "f",
        {"messages": HI, "tools": [{"type": "function", "function": TOOL}]},
    ),
    "responses": (
        "/v1/responses",
        "local_shell",
        {"input": "Hi", "tools": [{"type": "local_shell"}]},
    ),
    "a custom tool": (
        "/v1/responses",
        "f",
        {"input": "Hi", "tools": [{"type": "custom", "name": "f"}]},
    ),
    "messages": (
        "/v1/messages",
        "f",
        {"messages": HI, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}]},
    ),
    "ollama": (
        "/api/chat",
        "f",
        {"messages": HI, "tools": [{"type": "function", "function": TOOL}]},
    ),
}


@pytest.mark.parametrize(("path", "name", "fields"), ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
async def test_arguments_that_no_json_can_tell_do_not_end_an_answer(
    path: str, name: str, fields: dict[str, Any], stream: bool, value: str
) -> None:
    called = ReplyEvent(call=CallDelta(0, "call_1", name))
    written = ReplyEvent(call=CallDelta(0, arguments=f'{{"command": {value}}}'))
    chat = FakeChat((called, written, ending()))
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=chat)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:7411") as client:
        response = await client.post(path, json={"model": "fake", "stream": stream} | fields)

    assert response.status_code == 200, response.text
    assert response.text.encode()


TOLD: dict[str, tuple[str, dict[str, Any], Callable[[Any], Any]]] = {
    "responses": (
        "/v1/responses",
        {"input": "Hi", "tools": [{"type": "tool_search", "execution": "client"}]},
        lambda document: document["output"][0]["arguments"],
    ),
    "messages": (
        "/v1/messages",
        {"messages": HI, "tools": [{"name": "tool_search", "input_schema": {}}]},
        lambda document: document["content"][0]["input"],
    ),
    "ollama": (
        "/api/chat",
        {"messages": HI},
        lambda document: document["message"]["tool_calls"][0]["function"]["arguments"],
    ),
}


@pytest.mark.parametrize(("path", "fields", "arguments"), TOLD.values(), ids=TOLD.keys())
async def test_of_a_call_with_half_a_pair_and_no_number_the_rest_is_told_by_every_dialect(
    path: str, fields: dict[str, Any], arguments: Callable[[Any], Any]
) -> None:
    text = '{"query": "caf\\ud800", "most": NaN, "from": 2}'
    called = ReplyEvent(call=CallDelta(0, "call_1", "tool_search", text))
    chat = FakeChat((called, ending()))
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=chat)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:7411") as client:
        response = await client.post(path, json={"model": "fake", "stream": False} | fields)

    found = arguments(response.json())
    assert found == {"query": "caf\ufffd", "most": None, "from": 2}
