"""Anthropic's messages API: its shapes whole and streamed, its errors, an end for every stream."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.engine.request import FinishReason
from localrun.errors import (
    BusyError,
    ContextLengthError,
    EngineCrashedError,
    EngineError,
    GrammarError,
    LocalrunError,
    TemplateError,
)
from localrun.server.anthropic import counted, messages, messages_stream
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from tests.fake_chat import TIMINGS, FakeChat, FakeModels, ending

BASE = "http://127.0.0.1:7411"
MESSAGES = "/v1/messages?beta=true"
COUNT = "/v1/messages/count_tokens?beta=true"
USAGE = {
    "input_tokens": 6,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 3,
}
Event = tuple[str, dict[str, Any]]


@asynccontextmanager
async def client_of(app: ServedApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


def question(**fields: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": "Hi"}
    return {"model": "fake", "max_tokens": 100, "messages": [asked]} | fields


async def ask(chat: FakeChat, path: str = MESSAGES, **fields: Any) -> httpx2.Response:
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        return await client.post(path, json=question(**fields))


def events_of(response: httpx2.Response) -> list[Event]:
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    told: list[Event] = []
    for block in blocks:
        name, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        told.append((document.pop("type"), document))
    return told


async def streamed(chat: FakeChat, **fields: Any) -> list[Event]:
    response = await ask(chat, stream=True, **fields)
    assert response.status_code == 200, response.text
    return events_of(response)


def gathered(events: list[Event]) -> list[dict[str, Any]]:
    """The content that a client makes of a stream; every block has begun and ended in its turn."""
    content: list[dict[str, Any]] = []
    arguments = ""
    for kind, event in events:
        if kind == "content_block_start":
            assert event["index"] == len(content)
            content.append(dict(event["content_block"]))
            arguments = ""
        if kind == "content_block_delta":
            assert event["index"] == len(content) - 1
            delta = event["delta"]
            match delta["type"]:
                case "text_delta":
                    content[-1]["text"] += delta["text"]
                case "thinking_delta":
                    content[-1]["thinking"] += delta["thinking"]
                case "signature_delta":
                    content[-1]["signature"] = delta["signature"]
                case "input_json_delta":
                    arguments += delta["partial_json"]
        if kind == "content_block_stop" and content[-1]["type"] == "tool_use":
            content[-1]["input"] = json.loads(arguments or "{}")
    return content


async def test_an_answer_has_the_fields_of_a_message() -> None:
    response = await ask(FakeChat())

    document = response.json()
    assert response.status_code == 200
    assert response.headers["request-id"].startswith("req_")
    assert document.pop("id").startswith("msg_")
    assert document == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }


async def test_a_stream_has_anthropics_events_in_their_order() -> None:
    response = await ask(FakeChat(), stream=True)

    events = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"].startswith("req_")
    start = events[0][1]["message"]
    assert start.pop("id").startswith("msg_")
    assert events == [
        (
            "message_start",
            {
                "message": {
                    "type": "message",
                    "role": "assistant",
                    "model": "fake",
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": {
                        "input_tokens": len("<user>Hi"),
                        "cache_creation_input_tokens": 0,
                        "cache_read_input_tokens": 0,
                        "output_tokens": 0,
                    },
                }
            },
        ),
        ("ping", {}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "Hel"}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "lo"}}),
        ("content_block_stop", {"index": 0}),
        (
            "message_delta",
            {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
        ),
        ("message_stop", {}),
    ]


CALLING = (
    ReplyEvent(prefilled=5, prompt_tokens=10),
    ReplyEvent(reasoning="hm"),
    ReplyEvent(reasoning="m \n"),
    ReplyEvent(text="\n\n"),
    ReplyEvent(call=CallDelta(0, id="call_1a", name="get")),
    ReplyEvent(call=CallDelta(0, arguments='{"a": ')),
    ReplyEvent(call=CallDelta(0, arguments='"\\u00e4"}')),
    ReplyEvent(call=CallDelta(1, id="functions.now:1", name="now")),
    ReplyEvent(text=" \n"),
    ReplyEvent(text="Done"),
    ending(),
)
CALLED = [
    {"type": "thinking", "thinking": "hmm \n", "signature": "bG9jYWxydW4="},
    {"type": "tool_use", "id": "toolu_1a", "name": "get", "input": {"a": "ä"}},
    {
        "type": "tool_use",
        "id": "toolu_own_" + b"functions.now:1".hex(),
        "name": "now",
        "input": {},
    },
    {"type": "text", "text": " \nDone"},
]


async def test_thoughts_calls_and_text_are_blocks_whole_and_streamed() -> None:
    chat = FakeChat(CALLING)

    document = (await ask(chat)).json()
    events = await streamed(chat)

    assert document["content"] == CALLED
    assert document["stop_reason"] == "tool_use"
    assert gathered(events) == CALLED
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"


async def test_white_space_between_blocks_is_no_block_of_its_own() -> None:
    chat = FakeChat((ReplyEvent(reasoning="r"), ReplyEvent(text="\n"), ending()))

    assert [block["type"] for block in (await ask(chat)).json()["content"]] == ["thinking"]
    assert [block["type"] for block in gathered(await streamed(chat))] == ["thinking"]


async def test_a_call_that_was_cut_has_the_arguments_it_came_to() -> None:
    cut = ending(FinishReason.LENGTH)
    begun = CallDelta(0, id="call_1", name="get", arguments='{"a": 1, "b": [2, ')
    document = (await ask(FakeChat((ReplyEvent(call=begun), cut)), max_tokens=3)).json()

    assert document["content"][0]["input"] == {"a": 1, "b": [2]}
    assert document["stop_reason"] == "max_tokens"


def stopped(by: str) -> ReplyEvent:
    return ReplyEvent(prompt_tokens=10, finish=FinishReason.STOP, stopped=by, timings=TIMINGS)


CUT = ending(FinishReason.LENGTH)
ENDS: dict[str, tuple[ReplyEvent, dict[str, Any], str, str | None]] = {
    "its own end": (ending(), {}, "end_turn", None),
    "a sequence of the client's": (stopped("END"), {}, "stop_sequence", "END"),
    "a sequence of nobody's": (stopped("</tool_call>"), {}, "end_turn", None),
    "as many tokens as asked for": (CUT, {"max_tokens": 3}, "max_tokens", None),
    "a full context": (CUT, {"max_tokens": 4}, "model_context_window_exceeded", None),
    "a full context, asked for no length": (
        CUT,
        {"max_tokens": None},
        "model_context_window_exceeded",
        None,
    ),
    "cancelled": (ending(FinishReason.CANCELLED), {}, "end_turn", None),
}


@pytest.mark.parametrize(("last", "fields", "reason", "sequence"), ENDS.values(), ids=ENDS.keys())
async def test_every_end_has_its_reason_whole_and_streamed(
    last: ReplyEvent, fields: dict[str, Any], reason: str, sequence: str | None
) -> None:
    chat = FakeChat((ReplyEvent(text="a"), last))
    expected = {"stop_reason": reason, "stop_sequence": sequence}

    document = (await ask(chat, stop_sequences=["X", "END"], **fields)).json()
    events = await streamed(chat, stop_sequences=["X", "END"], **fields)

    assert {name: document[name] for name in expected} == expected
    assert events[-2][1]["delta"] == expected


async def test_a_stream_begins_with_the_length_of_the_prompt_as_the_engine_tells_it() -> None:
    chat = FakeChat((ReplyEvent(prefilled=512, prompt_tokens=31_415), *FakeChat().events))

    events = await streamed(chat)

    assert events[0][1]["message"]["usage"]["input_tokens"] == 31_415


async def test_a_silent_engine_is_waited_for_with_pings_behind_a_counted_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "BEGIN_S", 0.0)
    monkeypatch.setattr(messages_stream, "PING_S", 0.01)
    monkeypatch.setattr(counted, "COUNT_AFTER_S", 0.0)
    chat = FakeChat((), endless=True)

    text = await told_until(chat, lambda text, app: text.count("event: ping") >= 3)

    assert text.index("message_start") < text.index("event: ping")
    assert '"input_tokens":8' in text
    assert chat.running == 0


async def told_until(chat: FakeChat, is_enough: Callable[[str, ServedApp], bool]) -> str:
    """What a client was told of a stream until it had enough and left, or the stream ended."""
    app = create_app(FakeModels(fake=chat))
    asked, gone = [json.dumps(question(stream=True)).encode()], asyncio.Event()
    told = ""

    async def receive() -> dict[str, Any]:
        if asked:
            return {"type": "http.request", "body": asked.pop()}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal told
        told += message.get("body", b"").decode()
        if is_enough(told, app):
            gone.set()

    async with asyncio.timeout(10):
        await app(scope_of(MESSAGES), receive, send)
    return told


def scope_of(path: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1:7411"), (b"content-type", b"application/json")],
        "server": ("127.0.0.1", 7411),
        "client": ("127.0.0.1", 40_000),
        "scheme": "http",
        "http_version": "1.1",
    }


async def test_progress_in_reading_a_prompt_is_told_as_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages_stream, "PING_S", 0.0)
    reading = [ReplyEvent(prefilled=at, prompt_tokens=30) for at in (10, 20, 30)]

    kinds = [kind for kind, _ in await streamed(FakeChat((*reading, *FakeChat().events)))]

    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[2 : kinds.index("content_block_start")].count("ping") >= 2


REFUSED: dict[str, tuple[LocalrunError, int, str]] = {
    "busy": (BusyError("64 requests wait"), 429, "rate_limit_error"),
    "crashed": (EngineCrashedError("the engine ended"), 503, "overloaded_error"),
    "template": (TemplateError("the template failed"), 500, "api_error"),
    "too long": (ContextLengthError(200, 100), 400, "invalid_request_error"),
    "no such grammar": (GrammarError("json_schema", "no"), 400, "invalid_request_error"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "kind"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_refused_at_once_has_its_status_and_anthropics_shape(
    error: LocalrunError, status: int, kind: str, stream: bool
) -> None:
    response = await ask(FakeChat(error=error), stream=stream)

    document = response.json()
    assert response.status_code == status
    assert response.headers["request-id"].startswith("req_")
    assert document["type"] == "error"
    assert document["error"]["type"] == kind
    assert error.message in document["error"]["message"]


# What Claude Code 2.1.288 looks for: it makes the conversation shorter by the difference.
TOO_LONG = re.compile(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", re.IGNORECASE)


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize("tokens", [100, 200])
async def test_a_prompt_that_is_too_long_is_refused_in_words_that_claude_code_reads(
    tokens: int, path: str
) -> None:
    response = await ask(FakeChat(error=ContextLengthError(tokens, 100)), path)

    found = TOO_LONG.search(response.json()["error"]["message"])
    assert response.status_code == 400
    assert found is not None
    assert (int(found[1]), int(found[2])) == (tokens, 99)


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    failed = ReplyEvent(finish=FinishReason.ERROR, error=EngineError("the disk is gone"))

    events = await streamed(FakeChat((ReplyEvent(text="a"), failed)))

    assert events[-1] == (
        "error",
        {
            "error": {
                "type": "api_error",
                "message": "the disk is gone "
                "(try again; `localrun doctor` checks the installation)",
            }
        },
    )


async def test_an_error_at_the_end_of_a_whole_answer_has_its_status() -> None:
    failed = ReplyEvent(finish=FinishReason.ERROR, error=EngineCrashedError("gone"))

    response = await ask(FakeChat((ReplyEvent(text="a"), failed)))

    assert response.status_code == 503
    assert response.json()["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_a_last_event_is_an_error(stream: bool) -> None:
    response = await ask(FakeChat((ReplyEvent(text="a"),)), stream=stream)

    assert "without a last event" in response.text
    assert '"api_error"' in response.text.replace(" ", "")


async def test_a_stopping_server_says_so_in_its_last_event() -> None:
    chat = FakeChat((ReplyEvent(text="a"),), endless=True)

    def stop(text: str, app: ServedApp) -> bool:
        if "text_delta" in text:
            app.stopping.set()
        return False

    text = await told_until(chat, stop)

    last = text.split("\n\n")[-2]
    assert last.startswith("event: error\n")
    assert '"overloaded_error"' in last
    assert chat.running == 0


async def test_tokens_are_counted_of_what_would_be_asked_and_nothing_is_generated() -> None:
    chat = FakeChat()

    response = await ask(chat, COUNT, system="Be kind", max_tokens=None)

    assert response.status_code == 200
    assert response.json() == {"input_tokens": len("<system>Be kind<user>Hi")}
    assert chat.asked == []


DOOR: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "no key": ({"content-type": "application/json"}, b"{}", 401, "authentication_error"),
    "a wrong key": (
        {"content-type": "application/json", "x-api-key": "no"},
        b"{}",
        401,
        "authentication_error",
    ),
    "no JSON": (
        {"content-type": "text/plain", "x-api-key": "k"},
        b"{}",
        415,
        "invalid_request_error",
    ),
    "a broken body": (
        {"content-type": "application/json", "x-api-key": "k"},
        b'{"a',
        400,
        "invalid_request_error",
    ),
    "too large": (
        {"content-type": "application/json", "x-api-key": "k", "content-length": str(2**40)},
        b"{}",
        413,
        "request_too_large",
    ),
}


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize(("headers", "body", "status", "kind"), DOOR.values(), ids=DOOR.keys())
async def test_what_the_door_refuses_has_anthropics_shape_too(
    headers: dict[str, str], body: bytes, status: int, kind: str, path: str
) -> None:
    app = create_app(FakeModels(fake=FakeChat()), ServerOptions(api_key="k"))
    async with client_of(app) as client:
        response = await client.post(path, content=body, headers=headers)

    assert response.status_code == status
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == kind
    assert response.headers["request-id"].startswith("req_")


@pytest.mark.parametrize("header", [{"x-api-key": "k"}, {"authorization": "Bearer k"}])
async def test_either_way_to_send_a_key_is_taken(header: dict[str, str]) -> None:
    chat = FakeChat()
    betas = {"anthropic-version": "1999-01-01", "anthropic-beta": "a-b-c,oauth-2025-04-20"}
    app = create_app(FakeModels(fake=chat), ServerOptions(api_key="k"))
    async with client_of(app) as client:
        response = await client.post(MESSAGES, json=question(), headers=header | betas)

    assert response.status_code == 200
    assert chat.asked[0][1].context.owner


async def test_an_unknown_model_is_not_found() -> None:
    response = await ask(FakeChat(), model="claude-opus-4-8")

    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    assert "claude-opus-4-8" in response.json()["error"]["message"]
