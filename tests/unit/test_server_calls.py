"""The arguments of calls as a model writes them: what is no JSON harms no answer."""

from __future__ import annotations

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
    "no number": ('{"a": NaN}', None),
    "infinity": ('{"a": -Infinity}', None),
    "beyond doubles": ('{"a": [{"b": 1e999}]}', None),
    "half a pair": ('{"a": "\\ud800"}', None),
    "5,000 digits": (f'{{"a": {"1" * 5000}}}', None),
    "very deep": ("[" * 5000, None),
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ.keys())
def test_arguments_are_an_object_that_json_can_tell_or_nothing(
    text: str, expected: dict[str, Any] | None
) -> None:
    assert arguments_of(text) == expected


def test_of_arguments_that_were_cut_those_are_told_that_came() -> None:
    assert arguments_of('{"a": 1, "b": [2, ', cut=True) == {"a": 1, "b": [2]}


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
