"""Ollama's chat and generate: lines of JSON, whole answers, options, what is refused by name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import CallDelta, Gap, Message, Prompt, ReplyEvent, ToolCall
from localrun.engine.request import FinishReason, Grammar, TokenLogprob
from localrun.errors import ContextLengthError, EngineCrashedError, GrammarError, LocalrunError
from localrun.server.app import ServedApp, create_app
from localrun.server.ollama import answer
from localrun.server.ollama.fields import seconds_of
from localrun.server.ollama.names import plain, tagged
from tests.fake_chat import INFO, FakeChat, FakeModels, ending

BASE = "http://127.0.0.1:7411"
USER = {"role": "user", "content": "Hi"}
COST = {
    "prompt_eval_count": 10,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 3,
    "eval_duration": 250_000_000,
}
THINKER = replace(INFO, chat_template="{{ messages }}<think></think>")


@asynccontextmanager
async def client_of(app: ServedApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


async def chat_with(
    chat: FakeChat, models: FakeModels | None = None, **fields: Any
) -> httpx2.Response:
    body = {"model": "fake", "messages": [USER]} | fields
    async with client_of(create_app(models or FakeModels(fake=chat))) as client:
        return await client.post("/api/chat", json=body)


async def generate(
    chat: FakeChat, models: FakeModels | None = None, **fields: Any
) -> httpx2.Response:
    body = {"model": "fake", "prompt": "Once"} | fields
    async with client_of(create_app(models or FakeModels(fake=chat))) as client:
        return await client.post("/api/generate", json=body)


def lines_of(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def timed(document: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock says, once that it says it."""
    assert document.pop("created_at").endswith("Z")
    assert document.pop("total_duration") >= document.pop("load_duration") >= 0
    return document


async def test_a_chat_streams_lines_unless_told_otherwise() -> None:
    *texts, last = lines_of(await chat_with(FakeChat()))

    assert [text.pop("created_at")[:2] for text in texts] == ["20", "20"]
    assert texts == [
        {"model": "fake", "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"model": "fake", "message": {"role": "assistant", "content": "lo"}, "done": False},
    ]
    assert timed(last) == {
        "model": "fake",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        **COST,
    }


async def test_a_whole_chat_is_one_object() -> None:
    response = await chat_with(FakeChat(), stream=False)

    assert response.headers["content-type"] == "application/json"
    assert timed(response.json()) == {
        "model": "fake",
        "message": {"role": "assistant", "content": "Hello"},
        "done": True,
        "done_reason": "stop",
        **COST,
    }


async def test_thinking_is_apart_from_content_whole_and_streamed() -> None:
    events = (ReplyEvent(reasoning="hm"), ReplyEvent(reasoning='"m'), ReplyEvent(text="Yes"))
    chat = FakeChat((*events, ending()), info=THINKER)

    message = (await chat_with(chat, stream=False, think=True)).json()["message"]
    lines = lines_of(await chat_with(chat, think="low"))

    assert message == {"role": "assistant", "content": "Yes", "thinking": 'hm"m'}
    assert [line["message"].get("thinking", "") for line in lines] == ["hm", '"m', "", ""]
    assert [line["message"]["content"] for line in lines] == ["", "", "Yes", ""]
    assert [options.variables for _, options in chat.asked] == [
        {"enable_thinking": True, "thinking": True},
        {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"},
    ]


async def test_calls_are_told_whole_with_their_arguments_as_objects() -> None:
    calls = (
        ReplyEvent(call=CallDelta(0, "a1", "ls")),
        ReplyEvent(call=CallDelta(0, arguments='{"path":')),
        ReplyEvent(call=CallDelta(0, arguments='"."}')),
        ReplyEvent(call=CallDelta(1, "b2", "now", "{}")),
        ending(),
    )
    told = [
        {"id": "a1", "function": {"index": 0, "name": "ls", "arguments": {"path": "."}}},
        {"id": "b2", "function": {"index": 1, "name": "now", "arguments": {}}},
    ]

    called, last = lines_of(await chat_with(FakeChat(calls)))
    document = (await chat_with(FakeChat(calls), stream=False)).json()

    assert called["message"] == {"role": "assistant", "content": "", "tool_calls": told}
    assert (last["message"]["content"], last["done_reason"]) == ("", "stop")
    assert document["message"]["tool_calls"] == told


async def test_a_call_that_the_length_cut_is_not_told() -> None:
    calls = (
        ReplyEvent(call=CallDelta(0, "a1", "ls", '{"path": "')),
        ending(FinishReason.LENGTH),
    )

    (last,) = lines_of(await chat_with(FakeChat(calls)))

    assert last["done_reason"] == "length"
    assert "tool_calls" not in last["message"]


async def test_messages_and_options_reach_the_model_as_they_were_meant() -> None:
    chat, models = FakeChat(), None
    models = FakeModels(fake=chat)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    response = await chat_with(
        chat,
        models,
        model="fake:latest",
        messages=[
            {"role": "system", "content": "Be brief", "images": []},
            USER,
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"function": {"name": "g", "arguments": {}}},
                    {"function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "mine", "function": {"name": "f", "arguments": {"a": 2}}},
                ],
            },
            {"role": "tool", "content": "1", "tool_name": "f"},
            {"role": "tool", "content": "2", "tool_name": "f", "tool_call_id": "mine"},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "4", "tool_name": "unasked"},
        ],
        tools=[tool],
        format={"type": "object", "required": ["a"]},
        keep_alive="5m",
        options={
            "temperature": 0,
            "top_p": 0.5,
            "top_k": -1,
            "seed": 7.0,
            "num_ctx": 100,
            "num_predict": 9,
            "repeat_last_n": 3,
            "repeat_penalty": 1.5,
            "stop": ["END"],
            "num_gpu": 99,
            "num_thread": "many",
            "mirostat": 2,
        },
        some_new_field={"x": 1},
    )

    assert response.status_code == 200, response.text
    messages, options = chat.asked[0]
    assert list(messages) == [
        Message("system", "Be brief"),
        Message("user", "Hi"),
        Message(
            "assistant",
            "",
            reasoning="hm",
            tool_calls=(
                ToolCall("call_00000", "g", {}),
                ToolCall("call_00001", "f", {"a": 1}),
                ToolCall("mine", "f", {"a": 2}),
            ),
        ),
        Message("tool", "1", tool_call_id="call_00001", name="f"),
        Message("tool", "2", tool_call_id="mine", name="f"),
        Message("tool", "3", tool_call_id="call_00000"),
        Message("tool", "4", name="unasked"),
    ]
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 0, 7)
    assert (sampling.penalty_window, sampling.repeat_penalty) == (3, 1.5)
    assert (options.max_tokens, options.stop, options.tools) == (9, ("END",), (tool,))
    assert options.grammar == Grammar("json_schema", '{"type": "object", "required": ["a"]}')
    assert models.kept == [("fake", 300.0)]
    assert "localrun-context-length" not in response.headers


async def test_an_assistants_message_at_the_end_is_gone_on_with() -> None:
    chat = FakeChat()

    await chat_with(chat, messages=[USER, {"role": "assistant", "content": "Well,"}])

    assert chat.asked[0][1].continues


@pytest.mark.parametrize("number", [-1, -2, 0, None])
async def test_no_number_of_tokens_means_as_many_as_come(number: int | None) -> None:
    chat = FakeChat()

    await chat_with(chat, options={"num_predict": number, "seed": -1}, format="")

    assert chat.asked[0][1].max_tokens is None
    assert chat.asked[0][1].sampling.seed is None
    assert chat.asked[0][1].grammar is None


async def test_a_longer_context_than_there_is_is_told_of_and_cuts_nothing() -> None:
    longer = {"options": {"num_ctx": 131_072}}

    streamed = await chat_with(FakeChat(), **longer)
    whole = await generate(FakeChat(), stream=False, **longer)
    too_long = await chat_with(FakeChat(error=ContextLengthError(120, 100)), **longer)

    assert streamed.headers["localrun-context-length"] == "100"
    assert whole.headers["localrun-context-length"] == "100"
    assert too_long.status_code == 400
    assert "120 tokens, the context holds 100" in too_long.json()["error"]


async def test_logprobs_come_with_their_text_when_asked_for() -> None:
    token = TokenLogprob(5, b"H", -0.5, ((5, b"H", -0.5), (6, b"\xff", float("-inf"))))
    chat = FakeChat((ReplyEvent(text="H", logprobs=(token,)), ending()))
    told = {
        "token": "H",
        "logprob": -0.5,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.5, "bytes": [72]},
            {"token": "�", "logprob": -9999.0, "bytes": [255]},
        ],
    }

    text, _ = lines_of(await generate(chat, logprobs=True, top_logprobs=2))
    document = (await chat_with(chat, stream=False, logprobs=True)).json()

    assert (text["response"], text["logprobs"]) == ("H", [told])
    assert document["logprobs"] == [told]
    assert chat.asked[0][1].sampling.logprobs == 2
    assert chat.asked[1][1].sampling.logprobs == 0


async def test_a_prompt_is_a_turn_and_the_last_line_has_the_context_to_go_on_from() -> None:
    chat = FakeChat()

    *texts, last = lines_of(await generate(chat, system="Be brief"))
    document = (await generate(chat, stream=False)).json()

    assert [text["response"] for text in texts] == ["Hel", "lo"]
    assert (last["response"], last["done_reason"], last["eval_count"]) == ("", "stop", 3)
    assert bytes(last["context"]) == b"<system>Be brief<user>OnceHello"
    assert document["response"] == "Hello"
    assert bytes(document["context"]) == b"<user>OnceHello"
    assert list(chat.asked[0][0]) == [Message("system", "Be brief"), Message("user", "Once")]


async def test_a_context_is_gone_on_from() -> None:
    chat = FakeChat()

    document = (await generate(chat, stream=False, context=[72, 105])).json()

    (prompt,), _ = chat.completed[0]
    assert prompt == Prompt((72, 105, *b"<user>Once"), special=False)
    assert bytes(document["context"]) == b"Hi<user>OnceHello"


async def test_a_raw_prompt_is_gone_on_from_as_it_is() -> None:
    chat = FakeChat()

    document = (await generate(chat, stream=False, raw=True, options={"stop": "X"})).json()

    (prompt,), options = chat.completed[0]
    assert prompt == Prompt.of("Once")
    assert options.stop == ("X",)
    assert "context" not in document


@pytest.mark.parametrize("raw", [True, False, None])
async def test_a_suffix_asks_for_what_stands_between(raw: bool | None) -> None:
    chat = FakeChat()

    *texts, last = lines_of(await generate(chat, suffix=" end", raw=raw))

    assert list(chat.filled[0][0]) == [Gap("Once", " end")]
    assert [text["response"] for text in texts] == ["Hel", "lo"]
    assert "context" not in last


async def test_a_model_without_gap_tokens_refuses_a_suffix_by_name() -> None:
    response = await generate(FakeChat(info=replace(INFO, fim=None)), suffix="x")

    assert response.status_code == 400
    assert "fill-in-the-middle" in response.json()["error"]


async def test_empty_fields_of_older_clients_ask_for_nothing() -> None:
    chat = FakeChat()

    response = await generate(chat, suffix="", system="", template="", context=[], format="")

    assert response.status_code == 200
    assert list(chat.asked[0][0]) == [Message("user", "Once")]


LOADS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": ("/api/generate", {}, "load"),
    "an empty prompt": ("/api/generate", {"prompt": "", "keep_alive": 60}, "load"),
    "no messages": ("/api/chat", {"messages": []}, "load"),
    "kept for ever": ("/api/chat", {"keep_alive": -1}, "load"),
    "let go": ("/api/generate", {"keep_alive": 0}, "unload"),
    "let go in words": ("/api/chat", {"messages": [], "keep_alive": "0s"}, "unload"),
}


@pytest.mark.parametrize(("path", "body", "reason"), LOADS.values(), ids=LOADS.keys())
async def test_a_request_with_nothing_to_answer_loads_or_unloads(
    path: str, body: dict[str, Any], reason: str
) -> None:
    models = FakeModels(fake=FakeChat())
    async with client_of(create_app(models)) as client:
        document = (await client.post(path, json={"model": "fake"} | body)).json()

    assert (document["done"], document["done_reason"]) == (True, reason)
    said = document["message"]["content"] if path == "/api/chat" else document["response"]
    assert said == ""
    assert models.unloaded == (["fake"] if reason == "unload" else [])
    assert len(models.kept) == (reason == "load")


async def test_a_model_in_use_is_let_go_with_its_last_request() -> None:
    class Busy(FakeModels):
        async def unload(self, name: str) -> bool:
            return False

    models = Busy(fake=FakeChat())
    response = await generate(FakeChat(), models, prompt="", keep_alive=0)

    assert response.json()["done_reason"] == "unload"
    assert models.kept == [("fake", 0)]


KEPT: dict[str, tuple[object, float]] = {
    "seconds": (1800, 1800),
    "a fraction": (0.5, 0.5),
    "minutes": ("5m", 300),
    "several units": ("1h30m2.5s", 5402.5),
    "a thousandth": ("300ms", 0.3),
    "days": ("1d", 86400),
    "a number in a string": ("60", 60),
    "for ever": (-1, -1),
    "for ever in words": ("-1", -1),
    "for ever with a unit": ("-1m", -1),
    "longer than anybody": (1e300, -1),
    "not at all": ("0", 0),
}


@pytest.mark.parametrize(("given", "seconds"), KEPT.values(), ids=KEPT.keys())
def test_a_model_is_kept_as_long_as_was_said(given: object, seconds: float) -> None:
    assert seconds_of(given) == pytest.approx(seconds)


def test_the_tag_latest_is_that_of_a_name_without_one() -> None:
    names = {
        "smollm2": "smollm2:latest",
        "smollm2:Q8_0": "smollm2:Q8_0",
        "hf:org/repo": "hf:org/repo:latest",
        "hf:org/repo:Q4_K_M": "hf:org/repo:Q4_K_M",
        "./a.gguf": "./a.gguf:latest",
    }

    assert {name: tagged(name) for name in names} == names
    assert [plain(name) for name in names.values()] == list(names)


MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no such role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    "an image": ({"messages": [USER | {"images": ["aGk="]}]}, "messages[0].images"),
    "messages an object": ({"messages": USER}, "messages"),
    "arguments in a string": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a tool without a name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
    ),
    "no thinking model": ({"think": True}, "think"),
    "no thinking model at all": ({"think": "high"}, "think"),
}
PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt that is a list": ({"prompt": ["a"]}, "prompt"),
    "an image beside": ({"images": ["aGk="]}, "images"),
    "a template": ({"template": "{{ .Prompt }}"}, "template"),
    "raw with a system message": ({"raw": True, "system": "x"}, "system"),
    "raw with a context": ({"raw": True, "context": [1]}, "context"),
    "a suffix with a system message": ({"suffix": "x", "system": "x"}, "system"),
    "a context in a string": ({"context": "abc"}, "context"),
    "a context of negative ids": ({"context": [-1]}, "context[0]"),
    "half a character": ({"prompt": "\ud800"}, "JSON"),
}
BOTH: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "an empty model": ({"model": ""}, "model"),
    "a stream that is a word": ({"stream": "yes"}, "stream"),
    "a format of no kind": ({"format": "yaml"}, "format"),
    "a format that is a list": ({"format": []}, "format"),
    "a keep_alive of no unit": ({"keep_alive": "5 minutes"}, "keep_alive"),
    "a keep_alive that is true": ({"keep_alive": True}, "keep_alive"),
    "a keep_alive without an end": ({"keep_alive": "9" * 1000 + "s"}, "keep_alive"),
    "a thought of no size": ({"think": "hard"}, "think"),
    "options in a list": ({"options": []}, "options"),
    "temperature below": ({"options": {"temperature": -0.1}}, "options.temperature"),
    "temperature above": ({"options": {"temperature": 2.1}}, "options.temperature"),
    "temperature a string": ({"options": {"temperature": "0.5"}}, "options.temperature"),
    "top_k below": ({"options": {"top_k": -2}}, "options.top_k"),
    "top_k a fraction": ({"options": {"top_k": 1.5}}, "options.top_k"),
    "top_p above": ({"options": {"top_p": 1.5}}, "options.top_p"),
    "min_p below": ({"options": {"min_p": -1}}, "options.min_p"),
    "typical_p above": ({"options": {"typical_p": 2}}, "options.typical_p"),
    "seed above": ({"options": {"seed": 2**63}}, "options.seed"),
    "seed true": ({"options": {"seed": True}}, "options.seed"),
    "num_predict below": ({"options": {"num_predict": -3}}, "options.num_predict"),
    "num_ctx below": ({"options": {"num_ctx": -1}}, "options.num_ctx"),
    "num_ctx a word": ({"options": {"num_ctx": "8k"}}, "options.num_ctx"),
    "repeat_penalty zero": ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
    "repeat_last_n below": ({"options": {"repeat_last_n": -2}}, "options.repeat_last_n"),
    "presence above": ({"options": {"presence_penalty": 3}}, "options.presence_penalty"),
    "an empty stop": ({"options": {"stop": ["a", ""]}}, "options.stop[1]"),
    "65 stops": ({"options": {"stop": ["x"] * 65}}, "options.stop"),
    "21 alternatives": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "name"),
    [*MESSAGES.values(), *BOTH.values()],
    ids=[*MESSAGES, *BOTH],
)
async def test_a_chat_that_cannot_be_meant_is_refused_by_name(
    fields: dict[str, Any], name: str, stream: bool
) -> None:
    response = await chat_with(FakeChat(), **({"stream": stream} | fields))

    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(f"{name}: "), response.text


@pytest.mark.parametrize(
    ("fields", "name"), [*PROMPTS.values(), *BOTH.values()], ids=[*PROMPTS, *BOTH]
)
async def test_a_prompt_that_cannot_be_meant_is_refused_by_name(
    fields: dict[str, Any], name: str
) -> None:
    body = json.dumps({"model": "fake", "prompt": "Once"} | fields)
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        response = await client.post(
            "/api/generate", content=body, headers={"content-type": "application/json"}
        )

    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert name in response.json()["error"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/embed"])
async def test_a_model_that_is_not_here_is_a_404_with_an_error(path: str) -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        body = {"model": "other", "prompt": "x", "messages": [USER], "input": "x"}
        response = await client.post(path, json=body)

    assert response.status_code == 404
    assert "'other'" in response.json()["error"]


async def test_a_form_that_cannot_be_held_is_refused_by_the_name_of_its_field() -> None:
    error = GrammarError("json_schema", "no type")
    response = await chat_with(FakeChat(error=error), format={"type": "object"})

    assert response.status_code == 400
    assert response.json()["error"].startswith("format: json_schema: no type")


FAILURES: dict[str, tuple[LocalrunError, int, str]] = {
    "too long": (ContextLengthError(200, 100), 400, "200 tokens, the context holds 100"),
    "a crash": (EngineCrashedError("the engine ended"), 503, "the engine ended"),
    "no such grammar": (GrammarError("json_schema", "no type"), 400, "no type"),
}


@pytest.mark.parametrize(("error", "status", "said"), FAILURES.values(), ids=FAILURES.keys())
async def test_an_error_before_the_answer_keeps_its_status(
    error: LocalrunError, status: int, said: str
) -> None:
    for stream in (True, False):
        response = await chat_with(FakeChat(error=error), stream=stream)
        assert response.status_code == status
        assert said in response.json()["error"]


async def test_an_error_on_the_way_ends_the_stream_as_a_line() -> None:
    failed = ReplyEvent(finish=FinishReason.ERROR, error=EngineCrashedError("the engine ended"))
    chat = FakeChat((ReplyEvent(text="Hel"), failed))

    text, last = lines_of(await chat_with(chat))
    whole = await chat_with(chat, stream=False)

    assert text["message"]["content"] == "Hel"
    assert list(last) == ["error"]
    assert "the engine ended" in last["error"]
    assert whole.status_code == 503


def test_a_stopping_server_says_so_in_a_line() -> None:
    assert json.loads(answer.goodbye()) == {"error": "the server is shutting down"}
