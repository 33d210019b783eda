"""A model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, ToolCall
from localrun.chat.remote import RemoteChatModel, base_url
from localrun.engine.request import FinishReason, SamplingParams, Timings
from localrun.errors import (
    BusyError,
    ContextLengthError,
    EngineError,
    LocalrunError,
    ModelNotFoundError,
    RequestError,
    ServerError,
    UsageError,
)

URL = "http://127.0.0.1:9/v1"
HELLO = [Message("user", "hello")]
MODELS = {"object": "list", "data": [{"id": "qwen3-8b", "n_ctx": 4096}, {"id": "smollm2"}]}


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> str:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": fields.pop("finish", None)}
    return f"data: {json.dumps({'choices': [choice], **fields})}\n\n"


class Server:
    """Answers the two routes from memory and keeps the requests."""

    def __init__(self, stream: str = "", *, status: int = 200, models: Any = MODELS) -> None:
        self.stream = stream
        self.status = status
        self.models = models
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if request.url.path.endswith("/models"):
            return httpx2.Response(200, json=self.models)
        content_type = "text/event-stream" if self.status == 200 else "application/json"
        return httpx2.Response(
            self.status, headers={"content-type": content_type}, content=self.stream.encode()
        )

    def model(self, name: str | None = None, api_key: str | None = None) -> RemoteChatModel:
        return RemoteChatModel(URL, api_key, name, transport=httpx2.MockTransport(self))


async def replies(
    model: RemoteChatModel, options: ReplyOptions | None = None, messages: Any = HELLO
) -> list[ReplyEvent]:
    try:
        return [event async for event in model.reply(messages, options or ReplyOptions())]
    finally:
        await model.close()


async def test_an_answer_streams_reasoning_text_and_one_end() -> None:
    timings = {"prompt_n": 4, "cache_n": 1, "predicted_n": 3, "prompt_ms": 50, "predicted_ms": 100}
    server = Server(
        ": comment\n\n"
        + chunk({"role": "assistant"})
        + chunk({"reasoning_content": "hm"})
        + chunk({"content": "Par"})
        + chunk({"content": "is"})
        + chunk(finish="stop")
        + chunk(usage={"prompt_tokens": 5}, timings=timings)
        + "data: [DONE]\n\n"
    )

    assert await replies(server.model()) == [
        ReplyEvent(reasoning="hm"),
        ReplyEvent(text="Par"),
        ReplyEvent(text="is"),
        ReplyEvent(prompt_tokens=5, finish=FinishReason.STOP, timings=Timings(5, 1, 3, 0.05, 0.1)),
    ]


async def test_a_server_that_sends_no_timings_has_none() -> None:
    server = Server(chunk({"content": "x", "reasoning": "y"}) + chunk(finish="length"))

    assert await replies(server.model()) == [
        ReplyEvent(reasoning="y"),
        ReplyEvent(text="x"),
        ReplyEvent(finish=FinishReason.LENGTH),
    ]


async def test_the_request_carries_key_messages_and_options() -> None:
    server = Server(chunk(finish="stop"))
    messages = [
        *HELLO,
        Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("c", "look", {"at": 1}),)),
        Message("tool", "it", tool_call_id="c", name="look"),
    ]
    options = ReplyOptions(
        SamplingParams(seed=7),
        max_tokens=9,
        stop=("\n",),
        ignore_end=True,
        tools=({"type": "function"},),
    )

    await replies(server.model("smollm2", "secret"), options, messages)

    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer secret",
        "Bearer secret",
    ]
    body = json.loads(server.requests[1].content)
    assert body["model"] == "smollm2"
    assert (body["seed"], body["max_tokens"], body["stop"]) == (7, 9, ["\n"])
    assert body["ignore_eos"] is True
    assert body["tools"] == [{"type": "function"}]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    assert body["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "it", "tool_call_id": "c", "name": "look"},
    ]


async def test_the_first_model_served_is_taken_with_its_context() -> None:
    model = Server().model()
    assert (model.name, model.n_ctx, model.backend) == ("", 0, URL)

    await model.connect()
    await model.close()

    assert (model.name, model.n_ctx) == ("qwen3-8b", 4096)


async def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelNotFoundError, match="'llama'") as caught:
        await replies(Server().model("llama"))

    assert caught.value.nearest == ("qwen3-8b", "smollm2")
    assert "smollm2" in caught.value.hint


@pytest.mark.parametrize("models", [{}, {"data": 1}, [], "x"], ids=str)
async def test_another_protocol_is_a_server_error(models: Any) -> None:
    with pytest.raises(ServerError, match="OpenAI"):
        await replies(Server(models=models).model())


REFUSALS: dict[str, tuple[int, dict[str, Any], type[LocalrunError]]] = {
    "no key": (401, {"message": "key?"}, ServerError),
    "forbidden": (403, {}, ServerError),
    "unknown route": (404, {}, ModelNotFoundError),
    "queue full": (429, {}, BusyError),
    "bad field": (400, {"message": "top_p"}, RequestError),
    "too long": (400, {"message": "x", "n_prompt_tokens": 99, "n_ctx": 64}, ContextLengthError),
    "crash": (500, {"message": "a\x1b[2Jb"}, EngineError),
    "gateway": (502, {}, EngineError),
}


@pytest.mark.parametrize(("status", "error", "kind"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_is_a_typed_error(
    status: int, error: dict[str, Any], kind: type[LocalrunError]
) -> None:
    server = Server(json.dumps({"error": error}), status=status)

    with pytest.raises(kind) as caught:
        await replies(server.model())

    assert type(caught.value) is kind
    assert caught.value.message.isprintable()
    assert caught.value.hint


STREAMS = {
    "an error in the stream": (
        chunk({"content": "a"}) + 'data: {"error": {"message": "out\\u001b of memory"}}\n\n',
        "out of memory",
    ),
    "a stream that breaks off": (chunk({"content": "a"}), "the server ended the stream"),
    "nonsense": (
        "data: {\n\ndata: []\n\ndata: 1\n\n" + chunk({"content": "a"}),
        "the server ended",
    ),
}


@pytest.mark.parametrize(("stream", "words"), STREAMS.values(), ids=STREAMS)
async def test_what_came_before_an_error_is_kept(stream: str, words: str) -> None:
    text, last = await replies(Server(stream).model())

    assert text == ReplyEvent(text="a")
    assert last.finish is FinishReason.ERROR
    assert last.error is not None
    assert str(last.error).startswith(words)


async def test_no_server_there_is_a_server_error() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused")

    model = RemoteChatModel(URL, transport=httpx2.MockTransport(refuse))

    with pytest.raises(ServerError, match="connection refused"):
        await replies(model)


async def test_a_page_that_is_no_stream_is_a_server_error() -> None:
    def page(request: httpx2.Request) -> httpx2.Response:
        models = request.url.path.endswith("/models")
        return httpx2.Response(200, json=MODELS) if models else httpx2.Response(200, html="<p>")

    with pytest.raises(ServerError, match="event-stream"):
        await replies(RemoteChatModel(URL, transport=httpx2.MockTransport(page)))


async def test_leaving_early_closes_the_response() -> None:
    model = Server(chunk({"content": "a"}) + chunk({"content": "b"})).model()
    stream = model.reply(HELLO, ReplyOptions())

    assert await anext(stream) == ReplyEvent(text="a")
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator, as callers rely on
    await model.close()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("https://example.org/v1/", "https://example.org/v1"),
        (" http://[::1]:8080 ", "http://[::1]:8080/v1"),
    ],
)
def test_an_address_is_read_as_people_type_it(typed: str, meant: str) -> None:
    assert base_url(typed) == meant


@pytest.mark.parametrize(
    "typed", ["", "ftp://x", "file:///etc/passwd", "http://", "http://[x", "x:99999"]
)
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="--server"):
        base_url(typed)
