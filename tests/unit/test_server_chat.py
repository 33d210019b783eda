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


PART = {"type": "text", "text": "brief"}

MESSAGE = {"role": "user", "content": "Hi"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "no such role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [MESSAGE, MESSAGE | {"content": 1}]}, "messages[1].content"),
    "an image": (
        {"messages": [MESSAGE | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
    ),
    "a part without text": (
        {"messages": [MESSAGE | {"content": [{"type": "text"}]}]},
        "messages[0].content",
    ),
    "arguments no object": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a message that is none": ({"messages": ["hi"]}, "messages[0]"),
    "model missing": ({"model": None}, "model"),
    "temperature a string": ({"temperature": "0.5"}, "temperature"),
    "temperature below": ({"temperature": -0.1}, "temperature"),
    "temperature above": ({"temperature": 2.1}, "temperature"),
    "temperature true": ({"temperature": True}, "temperature"),
    "top_p above": ({"top_p": 1.1}, "top_p"),
    "top_k below": ({"top_k": -1}, "top_k"),
    "min_p above": ({"min_p": 2}, "min_p"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "max_tokens zero": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens 2^63": ({"max_tokens": 2**63}, "max_tokens"),
    "max_tokens a float": ({"max_tokens": 1.5}, "max_tokens"),
    "max_completion_tokens negative": ({"max_completion_tokens": -1}, "max_completion_tokens"),
    "no choice": ({"n": 0}, "n"),
    "nine choices": ({"n": 9}, "n"),
    "a thousand choices": ({"n": 1000}, "n"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop": ({"stop": ""}, "stop[0]"),
    "an empty stop in a list": ({"stop": ["a", ""]}, "stop[1]"),
    "a stop that is a number": ({"stop": 1}, "stop"),
    "1025 biases": ({"logit_bias": {str(n): 1.0 for n in range(1025)}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"hello": 1.0}}, "logit_bias"),
    "a bias of a negative token": ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
    "a bias of a token of a million digits": ({"logit_bias": {"9" * 10**6: 1}}, "logit_bias"),
    "a bias above": ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
    "a bias that is a word": ({"logit_bias": {"1": "ban"}}, "logit_bias[1]"),
    "biases in a list": ({"logit_bias": [[1, 1.0]]}, "logit_bias"),
    "logprobs a number": ({"logprobs": 5}, "logprobs"),
    "21 logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "alternatives without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "a penalty above": ({"presence_penalty": 2.1}, "presence_penalty"),
    "a penalty below": ({"frequency_penalty": -2.1}, "frequency_penalty"),
    "typical_p above": ({"typical_p": 1.1}, "typical_p"),
    "repeat_last_n below": ({"repeat_last_n": -2}, "repeat_last_n"),
    "dry_base below": ({"dry_base": 0.5}, "dry_base"),
    "a breaker that is empty": ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
    "xtc_probability above": ({"xtc_probability": 1.5}, "xtc_probability"),
    "a format of no kind": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "a format that is a word": ({"response_format": "json"}, "response_format"),
    "a schema that is missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "a schema without a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "a schema that is a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
    ),
    "a grammar over a MiB": ({"grammar": "x" * (1024 * 1024 + 1)}, "grammar"),
    "a breaker of 41 bytes": (
        {"dry_sequence_breakers": ["x", "ß" * 20 + "x"]},
        "dry_sequence_breakers[1]",
    ),
    "65 breakers": ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers"),
    "an empty grammar": ({"grammar": ""}, "grammar"),
    "two forms": (
        {"response_format": {"type": "json_object"}, "grammar": 'root ::= "x"'},
        "grammar",
    ),
    "two other forms": ({"json_schema": {}, "guided_choice": ["a"]}, "guided_choice"),
    "no choice to make": ({"guided_choice": []}, "guided_choice"),
    "a user of 513 characters": ({"user": "x" * 513}, "user"),
    "a forced tool": ({"tool_choice": "required"}, "tool_choice"),
    "a choice of no kind": ({"tool_choice": 1}, "tool_choice"),
    "tools no list": ({"tools": {}}, "tools"),
    "stream a word": ({"stream": "yes"}, "stream"),
    "ignore_eos a number": ({"ignore_eos": 1}, "ignore_eos"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_field_out_of_its_range_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    chat = FakeChat()
    response = await ask(chat, **fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(param)
    assert chat.asked == []


LIMITS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 2},
    "top_p": {"top_p": 1},
    "seed": {"seed": -(2**63)},
    "max_tokens": {"max_tokens": 2**31 - 1},
    "stop": {"stop": ["x" * 1024] * 16},
    "what is off": {
        "n": 1,
        "presence_penalty": 0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tool_choice": "none",
    },
    "n": {"n": 8},
    "logprobs": {"logprobs": True, "top_logprobs": 20},
    "bias": {"logit_bias": {str(n): -100 for n in range(1024)}},
    "penalties": {"presence_penalty": -2, "frequency_penalty": 2.0, "repeat_last_n": -1},
    "grammar": {"grammar": "x" * 1024 * 1024},
    "breakers": {"dry_sequence_breakers": ["ß" * 20] * 64},
    "free text beside a grammar": {"response_format": {"type": "text"}, "grammar": "x"},
    "nulls": {"stop": None, "seed": None, "stream": None, "tools": None, "max_tokens": None},
}


@pytest.mark.parametrize("fields", LIMITS.values(), ids=LIMITS.keys())
async def test_a_field_at_its_limit_is_accepted(fields: dict[str, Any]) -> None:
    assert (await ask(FakeChat(), **fields)).status_code == 200


BODIES = {
    "empty": b"",
    "no json": b"{",
    "a list": b"[]",
    "a string": b'"hi"',
    "not utf-8": b'{"model": "\xff"}',
    "not a number": b'{"model":"fake","messages":[{"role":"user","content":"x"}],"top_p":NaN}',
    "a lone surrogate": b'{"model":"fake","messages":[{"role":"user","content":"\\ud800"}]}',
    "a surrogate in a tool": b'{"model":"fake","messages":[{"role":"user","content":"x"}],'
    b'"tools":[{"\\udfff":1}]}',
    "5000 digits": b'{"model":"fake","messages":[],"seed":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_request_is_refused_in_openais_shape(body: bytes) -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        response = await client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )

    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "code", "param"}


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
