"""The chat completions API: OpenAI's shapes, errors by name, an end for every stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import httpx2
import pytest

from localrun.chat.messages import Message, ReplyEvent, ToolCall
from localrun.engine.request import FinishReason
from localrun.errors import (
    BusyError,
    ContextLengthError,
    DoesNotFitError,
    EngineCrashedError,
    EngineError,
    LocalrunError,
    MemoryInUseError,
    TemplateError,
)
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from localrun.server.openai import chat_answer
from tests.fake_chat import FakeChat, FakeModels, ending

BASE = "http://127.0.0.1:7411"
CHAT = "/v1/chat/completions"
PART = {"type": "text", "text": "brief"}
MESSAGE = {"role": "user", "content": "Hi"}


@asynccontextmanager
async def client_of(app: ServedApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


async def ask(chat: FakeChat, **fields: Any) -> httpx2.Response:
    question = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]} | fields
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        return await client.post(CHAT, json=question)


def events_of(response: httpx2.Response) -> list[Any]:
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def test_an_answer_has_the_fields_of_a_chat_completion() -> None:
    response = await ask(FakeChat())

    document = response.json()
    assert response.status_code == 200
    assert document.pop("id").startswith("chatcmpl-")
    assert isinstance(document.pop("created"), int)
    assert document == {
        "object": "chat.completion",
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        "timings": {
            "cache_n": 4,
            "prompt_n": 6,
            "prompt_ms": 500.0,
            "prompt_per_token_ms": 500 / 6,
            "prompt_per_second": 12.0,
            "predicted_n": 3,
            "predicted_ms": 250.0,
            "predicted_per_token_ms": 125.0,
            "predicted_per_second": 8.0,
        },
    }


async def test_a_stream_begins_with_the_role_and_ends_with_a_reason_and_done() -> None:
    response = await ask(FakeChat(), stream=True)

    *chunks, done = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["stop"]
    assert "usage" not in chunks[0]
    assert chunks[-1]["timings"]["predicted_n"] == 3


async def test_usage_comes_in_a_last_chunk_of_its_own_when_asked_for() -> None:
    response = await ask(FakeChat(), stream=True, stream_options={"include_usage": True})

    *chunks, last, done = events_of(response)
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 13


async def test_reasoning_is_apart_from_content_whole_and_streamed() -> None:
    events = (ReplyEvent(reasoning="hm"), ReplyEvent(reasoning="m"), ReplyEvent(text="Yes"))
    chat = FakeChat((*events, ending()))

    message = (await ask(chat)).json()["choices"][0]["message"]
    *chunks, _ = events_of(await ask(chat, stream=True))

    assert message == {"role": "assistant", "content": "Yes", "reasoning_content": "hmm"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks][1:4] == [
        {"reasoning_content": "hm"},
        {"reasoning_content": "m"},
        {"content": "Yes"},
    ]


async def test_an_answer_cut_by_max_tokens_says_length() -> None:
    chat = FakeChat((ReplyEvent(text="a"), ending(FinishReason.LENGTH)))

    assert (await ask(chat)).json()["choices"][0]["finish_reason"] == "length"


async def test_messages_and_options_reach_the_model_as_they_were_meant() -> None:
    chat = FakeChat()
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    response = await ask(
        chat,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, PART]},
            {"role": "user", "content": "Hi", "name": "Ada"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "r"},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
        ],
        temperature=0,
        top_p=0.5,
        top_k=3,
        seed=7,
        max_tokens=9,
        max_completion_tokens=8,
        stop="END",
        ignore_eos=True,
        tools=[tool, {"type": "web_search"}],
        tool_choice="auto",
        some_new_field={"x": 1},
    )

    assert response.status_code == 200, response.text
    messages, options = chat.asked[0]
    assert list(messages) == [
        Message("system", "Be brief"),
        Message("user", "Hi", name="Ada"),
        Message("assistant", "", reasoning="r", tool_calls=(ToolCall("c1", "f", {"a": 1}),)),
        Message("tool", "2", tool_call_id="c1"),
    ]
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 3, 7)
    assert (options.max_tokens, options.stop, options.tools) == (8, ("END",), (tool,))
    assert options.ignore_end


async def test_who_asks_is_told_apart_by_key_address_and_user() -> None:
    chat = FakeChat()
    question = {"model": "fake", "messages": [MESSAGE]}
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        await client.post(CHAT, json=question)
        await client.post(CHAT, json=question | {"user": "ada"}, headers={"x-api-key": "k"})

    nobody, ada = (options.context for _, options in chat.asked)
    assert (nobody.owner, nobody.client) == ("", "127.0.0.1 ")
    assert ada.owner
    assert ada.client == f"{ada.owner}/ada"


async def test_several_choices_are_asked_for_and_told() -> None:
    chat = FakeChat()

    document = (await ask(chat, n=3)).json()
    *chunks, done = events_of(await ask(chat, n=3, stream=True))

    assert [choice["message"]["content"] for choice in document["choices"]] == ["Hello"] * 3
    assert document["usage"]["completion_tokens"] == 9
    assert "timings" not in document
    assert done == "[DONE]"
    ended = [chunk["choices"][0]["index"] for chunk in chunks if "timings" in chunk]
    assert sorted(ended) == [0, 1, 2]


ERRORS: dict[str, tuple[LocalrunError, int, str | None]] = {
    "context": (ContextLengthError(5000, 4096), 400, "context_length_exceeded"),
    "busy": (BusyError("64 requests are waiting"), 429, "queue_full"),
    "template": (TemplateError("line 3"), 500, None),
    "crash": (EngineCrashedError("SIGSEGV"), 503, None),
    "memory": (DoesNotFitError("needs 10 GB, has 8 GB"), 503, None),
    "memory in use": (MemoryInUseError("m has to wait"), 503, "memory_in_use"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("error", "status", "code"), ERRORS.values(), ids=ERRORS.keys())
async def test_an_error_before_the_first_token_has_its_own_status(
    error: LocalrunError, status: int, code: str | None, stream: bool
) -> None:
    response = await ask(FakeChat(error=error), stream=stream)

    body = response.json()["error"]
    assert (response.status_code, body["code"]) == (status, code)
    assert error.message in body["message"]
    assert error.hint in body["message"]
    passing = isinstance(error, BusyError | MemoryInUseError)
    assert ("retry-after" in response.headers) == passing


async def test_a_prompt_that_is_too_long_is_told_with_both_numbers() -> None:
    response = await ask(FakeChat(error=ContextLengthError(5000, 4096)))

    message = response.json()["error"]["message"]
    assert "5000" in message
    assert "4096" in message


async def test_an_unknown_model_is_404_with_its_name() -> None:
    response = await ask(FakeChat(), model="gpt-9")

    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "gpt-9" in error["message"]


class Raising(FakeChat):
    """Breaks after its events."""

    async def reply(self, *args: Any) -> AsyncIterator[ReplyEvent]:
        async for event in super().reply(*args):
            yield event
        raise EngineCrashedError("the engine's process ended (SIGSEGV)")


BROKEN = {
    "raised": Raising((ReplyEvent(text="Hel"),)),
    "told": FakeChat(
        (
            ReplyEvent(text="Hel"),
            ReplyEvent(finish=FinishReason.ERROR, error=EngineError("SIGSEGV")),
        )
    ),
}


@pytest.mark.parametrize("chat", BROKEN.values(), ids=BROKEN.keys())
async def test_an_error_under_a_stream_is_its_last_event(chat: FakeChat) -> None:
    *_, text, error, done = events_of(await ask(chat, stream=True))

    assert text["choices"][0]["delta"] == {"content": "Hel"}
    assert "SIGSEGV" in error["error"]["message"]
    assert error["error"]["type"] == "server_error"
    assert done == "[DONE]"


async def test_an_error_under_a_whole_answer_is_a_status() -> None:
    chat = FakeChat(
        (ReplyEvent(text="Hel"), ReplyEvent(finish=FinishReason.ERROR, error=EngineError("NaN")))
    )

    response = await ask(chat)

    assert response.status_code == 500
    assert "NaN" in response.json()["error"]["message"]


async def test_a_model_that_ends_without_a_last_event_is_an_error() -> None:
    assert (await ask(FakeChat((ReplyEvent(text="x"),)))).status_code == 500


async def test_models_are_listed_and_shown() -> None:
    models = FakeModels(**{"org/repo:Q4_K_M": FakeChat()})
    card = {
        "id": "org/repo:Q4_K_M",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "localrun",
        "type": "model",
        "display_name": "org/repo:Q4_K_M",
        "created_at": "2023-11-14T22:13:20Z",
        "meta": {"n_ctx": 100},
        "context_length": 100,
    }
    listed = {"object": "list", "data": [card], "has_more": False}
    ends = {"first_id": "org/repo:Q4_K_M", "last_id": "org/repo:Q4_K_M"}
    async with client_of(create_app(models)) as client:
        assert (await client.get("/v1/models")).json() == listed | ends
        assert (await client.get("/v1/models/org/repo:Q4_K_M")).json() == card
        assert (await client.get("/v1/models/none")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/no", 404), ("GET", CHAT, 405), ("GET", "/docs", 404), ("GET", "/openapi.json", 404)],
)
async def test_what_is_not_there_is_told_in_openais_shape(
    method: str, path: str, status: int
) -> None:
    async with client_of(create_app(FakeModels())) as client:
        response = await client.request(method, path)

    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "code", "param"}


async def test_docs_exist_when_they_are_asked_for() -> None:
    async with client_of(create_app(FakeModels(), ServerOptions(docs=True))) as client:
        document = (await client.get("/openapi.json")).json()

    assert CHAT in document["paths"]


async def test_an_error_nobody_foresaw_is_told_without_its_details() -> None:
    class Broken(FakeModels):
        def lease(self, name: str, *, keep_s: float | None = None) -> NoReturn:
            raise RuntimeError("a secret path")

    transport = httpx2.ASGITransport(create_app(Broken()), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        response = await client.post(CHAT, json={"model": "m", "messages": [MESSAGE]})

    assert response.status_code == 500
    assert "secret" not in response.text
    assert "RuntimeError" in response.json()["error"]["message"]


async def test_a_busy_server_tells_the_next_client_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localrun.server.guards.MAX_REQUESTS", 0)

    response = await ask(FakeChat())

    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"


AWKWARD = [
    '"',
    '""',
    "\\",
    "\n\r\t\0",
    "\u2028",
    "héllo 🎉",
    "\ud83d",
    "%s {} %(a)s",
    'x","delta":{}',
]


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
async def test_a_text_of_any_characters_is_streamed_as_json_and_comes_out_as_it_went_in(
    text: str, usage: bool
) -> None:
    events = (ReplyEvent(reasoning=text), ReplyEvent(text=text), ReplyEvent(text=text, choice=1))
    stream = chat_answer.chunks(text, _each((*events, ending(), ending())), 2, include_usage=usage)
    sent = [chunk async for chunk in stream]

    documents = [json.loads(chunk.removeprefix(b"data: ")) for chunk in sent[2:5]]
    deltas = [document["choices"][0] for document in documents]
    assert [choice["delta"] for choice in deltas] == [
        {"reasoning_content": text},
        {"content": text},
        {"content": text},
    ]
    assert [choice["index"] for choice in deltas] == [0, 0, 1]
    assert {document["model"] for document in documents} == {text}
    assert all(("usage" in document) == usage for document in documents)
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2 for chunk in sent)


async def _each(events: tuple[ReplyEvent, ...]) -> AsyncIterator[ReplyEvent]:
    for event in events:
        yield event
