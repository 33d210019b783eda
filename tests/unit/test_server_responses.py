"""The Responses API: OpenAI's documents and events, an end for every stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from localrun.chat.messages import CallDelta, Message, ReplyEvent
from localrun.engine.request import FinishReason, TokenLogprob
from localrun.errors import (
    BusyError,
    ContextLengthError,
    EngineCrashedError,
    GrammarError,
    LocalrunError,
    RequestError,
)
from localrun.server.openai.responses import answer, routes
from localrun.server.openai.responses.answer import Answer
from tests.fake_chat import TIMINGS, FakeChat, ending
from tests.responses import WEATHER, ask, deltas, kinds, outputs, parsed, streamed, whole

CALLED = (
    ReplyEvent(call=CallDelta(0, "call_1", "weather")),
    ReplyEvent(call=CallDelta(0, arguments='{"city":')),
    ReplyEvent(call=CallDelta(0, arguments=' "Ulm"}')),
)
THOUGHT = (ReplyEvent(reasoning="hm"), ReplyEvent(reasoning="m"), ReplyEvent(text="Yes"), ending())


async def test_an_answer_has_the_fields_of_a_response() -> None:
    document = await whole(FakeChat(), metadata={"a": "b"}, instructions="Be brief", user="ada")

    assert document.pop("id").startswith("resp_")
    assert document.pop("created_at") <= document.pop("completed_at")
    assert document["output"][0].pop("id").startswith("msg_")
    assert document.pop("timings")["predicted_n"] == 3
    text = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    message = {"type": "message", "status": "completed", "role": "assistant", "content": [text]}
    assert document == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "fake",
        "output": [message],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 13,
        },
        "user": "ada",
    }


async def test_a_text_is_streamed_by_the_events_of_a_message() -> None:
    events = await streamed(FakeChat())

    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["Hel", "lo"]
    assert events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    assert events[6]["text"] == events[7]["part"]["text"] == "Hello"
    assert events[8]["item"] == events[9]["response"]["output"][0]
    assert len({event["item_id"] for event in events[3:8]}) == 1
    lifecycle = [events[0], events[1], events[9]]
    assert len({event["response"]["id"] for event in lifecycle}) == 1
    assert [event["response"]["status"] for event in lifecycle] == ["in_progress"] * 2 + [
        "completed"
    ]


async def test_what_is_thought_is_an_item_with_content_before_the_message() -> None:
    document = await whole(FakeChat(THOUGHT))
    events = await streamed(FakeChat(THOUGHT))

    thought, message = outputs(document)
    assert thought == {
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hmm"}],
        "encrypted_content": None,
    }
    assert message["content"][0]["text"] == "Yes"
    assert kinds(events)[2:9] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert events[3]["part"] == {"type": "reasoning_text", "text": ""}
    assert events[9]["output_index"] == 1
    assert outputs(events[-1]["response"]) == outputs(document)


async def test_whoever_asks_for_a_summary_is_told_the_thought_as_one() -> None:
    fields = {"reasoning": {"effort": "high", "summary": "auto"}}
    document = await whole(FakeChat(THOUGHT), **fields)
    events = await streamed(FakeChat(THOUGHT), **fields)

    assert outputs(document)[0]["summary"] == [{"type": "summary_text", "text": "hmm"}]
    assert "content" not in outputs(document)[0]
    assert kinds(events)[2:9] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert outputs(events[-1]["response"]) == outputs(document)


async def test_a_thought_comes_back_by_what_a_client_keeps_unread() -> None:
    document = await whole(FakeChat(THOUGHT), include=["reasoning.encrypted_content"])
    thought, message = document["output"]
    chat = FakeChat()
    kept = {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]}
    await whole(chat, input=[{"role": "user", "content": "Hi"}, kept, message])

    assert chat.asked[0][0][1] == Message("assistant", "Yes", reasoning="hmm")


async def test_a_call_is_an_item_streamed_by_its_arguments() -> None:
    chat = FakeChat((ReplyEvent(text="I look."), *CALLED, ending()))
    document = await whole(chat, tools=[WEATHER])
    events = await streamed(chat, tools=[WEATHER])

    call = {
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "weather",
        "arguments": '{"city": "Ulm"}',
    }
    assert outputs(document)[1] == call
    assert document["output"][1]["id"].startswith("fc_")
    assert document["tools"] == [WEATHER]
    assert kinds(events)[5:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[8]["item"]["arguments"] == ""
    assert events[11]["arguments"] == call["arguments"]
    assert outputs(events[-1]["response"]) == outputs(document)


async def test_calls_in_a_row_are_items_of_their_own() -> None:
    first = CallDelta(0, "call_1", "weather", '{"city": "Ulm"}')
    second = CallDelta(1, "call_2", "weather")
    events = (ReplyEvent(call=first), ReplyEvent(call=second), ending())
    told = await streamed(FakeChat(events), tools=[WEATHER])

    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert [item["call_id"] for item in done] == ["call_1", "call_2"]
    # One that has no arguments is a call with none.
    assert [item["arguments"] for item in done] == ['{"city": "Ulm"}', "{}"]
    assert deltas(told) == '{"city": "Ulm"}{}'
    assert outputs(await whole(FakeChat(events), tools=[WEATHER])) == outputs(told[-1]["response"])


async def test_an_answer_cut_by_its_limit_is_incomplete() -> None:
    chat = FakeChat((ReplyEvent(text="a"), ending(FinishReason.LENGTH)))
    document = await whole(chat, max_output_tokens=1)
    events = await streamed(chat, max_output_tokens=1)

    assert document["status"] == "incomplete"
    assert document["incomplete_details"] == {"reason": "max_output_tokens"}
    assert document["output"][0]["status"] == "incomplete"
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_an_answer_cut_while_it_thinks_was_all_thought() -> None:
    chat = FakeChat((ReplyEvent(reasoning="hm"), ending(FinishReason.LENGTH)))
    usage = (await whole(chat))["usage"]

    assert usage["output_tokens_details"] == {"reasoning_tokens": TIMINGS.generated_tokens}


async def test_logprobs_of_a_last_event_without_a_text_are_told_with_the_whole() -> None:
    tokens = [TokenLogprob(n, text, -0.5) for n, text in enumerate((b"Hi", b"</s>"))]
    chat = FakeChat(
        (ReplyEvent(text="Hi", logprobs=(tokens[0],)), replace(ending(), logprobs=(tokens[1],)))
    )
    document = await whole(chat, top_logprobs=0)
    events = await streamed(chat, include=["message.output_text.logprobs"])

    done = next(each for each in events if each["type"] == "response.output_text.done")
    for told in (document["output"][0]["content"][0], done):
        assert [each["token"] for each in told["logprobs"]] == ["Hi", "</s>"]


async def test_logprobs_come_where_they_are_asked_for() -> None:
    token = TokenLogprob(5, b"Hi", -0.25, ((5, b"Hi", -0.25), (6, b"x", -1.5)))
    chat = FakeChat((ReplyEvent(text="Hi", logprobs=(token,)), ending()))
    document = await whole(chat, top_logprobs=2)
    events = await streamed(chat, include=["message.output_text.logprobs"])

    told = document["output"][0]["content"][0]["logprobs"]
    assert [(each["token"], each["logprob"]) for each in told] == [("Hi", -0.25)]
    assert [each["token"] for each in told[0]["top_logprobs"]] == ["Hi", "x"]
    assert events[4]["logprobs"] == events[5]["logprobs"] == told
    assert [options.sampling.logprobs for _, options in chat.asked] == [2, 0]


BEFORE: dict[str, tuple[LocalrunError, int, str | None, str | None]] = {
    "context": (ContextLengthError(5000, 4096), 400, "context_length_exceeded", "input"),
    "busy": (BusyError("the queue is full"), 429, "queue_full", None),
    "grammar": (GrammarError("json_schema", "no"), 400, "invalid_request", "text.format"),
    "crash": (EngineCrashedError("it ended"), 503, None, None),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code", "param"), BEFORE.values(), ids=BEFORE.keys())
async def test_an_error_before_the_answer_has_its_status(
    error: LocalrunError, status: int, code: str | None, param: str | None, stream: bool
) -> None:
    form = {"format": {"type": "json_object"}}
    if isinstance(error, RequestError):
        # It is raised in more tests than one, and named in each.
        error.field = None
    response = await ask(FakeChat(error=error), stream=stream, text=form)

    told = response.json()["error"]
    assert response.status_code == status
    assert (told["code"], told["param"]) == (code, param)


async def test_a_prompt_over_the_context_is_told_with_both_numbers() -> None:
    response = await ask(FakeChat(error=ContextLengthError(5000, 4096)))

    message = response.json()["error"]["message"]
    assert "5000" in message
    assert "4096" in message


async def test_an_unknown_model_is_404_with_its_name() -> None:
    response = await ask(FakeChat(), model="gpt-9")

    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")


class Raising(FakeChat):
    """Breaks after its events."""

    async def reply(self, *args: Any) -> Any:
        async for event in super().reply(*args):
            yield event
        raise EngineCrashedError("the engine's process ended (SIGSEGV)")


def told_error(error: LocalrunError) -> FakeChat:
    last = ReplyEvent(finish=FinishReason.ERROR, error=error)
    return FakeChat((ReplyEvent(text="Hel"), last))


BROKEN = {
    "raised": (Raising((ReplyEvent(text="Hel"),)), "server_error", "SIGSEGV"),
    "told": (told_error(EngineCrashedError("NaN")), "server_error", "NaN"),
    "context": (told_error(ContextLengthError(9, 8)), "context_length_exceeded", "9"),
    "busy": (told_error(BusyError("the queue is full")), "rate_limit_exceeded", "queue"),
    "grammar": (told_error(GrammarError("gbnf", "no way on")), "invalid_prompt", "no way on"),
    "no end": (FakeChat((ReplyEvent(text="Hel"),)), "server_error", "last event"),
}


@pytest.mark.parametrize(("chat", "code", "said"), BROKEN.values(), ids=BROKEN.keys())
async def test_an_error_under_a_stream_ends_it_as_a_failed_response(
    chat: FakeChat, code: str, said: str
) -> None:
    events = await streamed(chat)

    failed = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == code
    assert said in failed["error"]["message"]
    assert failed["output"][0]["status"] == "incomplete"
    assert failed["output"][0]["content"][0]["text"] == "Hel"


async def test_a_long_silence_is_told_by_an_event_that_codex_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer, "QUIET_S", 0.0)
    read = asyncio.Event()

    async def slow() -> AsyncIterator[ReplyEvent]:
        await read.wait()
        yield ReplyEvent(prefilled=5)
        yield ReplyEvent(text="Hi")
        yield ending()

    told: list[dict[str, Any]] = []
    async with aclosing(answer.chunks(Answer("m", {"tools": []}), slow())) as sent:
        async for block in sent:
            told.append(json.loads(block.decode().split("data: ")[1]))
            if len(told) == 5:
                read.set()

    assert kinds(told)[:5] == ["created", *["in_progress"] * 4]
    assert told[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in told] == list(range(len(told)))


class Late(FakeChat):
    """Has other things to do first."""

    async def reply(self, *args: Any) -> Any:
        for _ in range(20):
            await asyncio.sleep(0)
        async for event in super().reply(*args):
            yield event


async def test_a_model_that_takes_long_to_begin_answers_within_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "BEGIN_WITHIN_S", 0.0)
    events = await streamed(Late(error=ContextLengthError(5000, 4096)))

    assert kinds(events) == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
    assert "5000" in events[-1]["response"]["error"]["message"]


def test_a_server_that_stops_says_so_as_a_failed_response() -> None:
    told = Answer("m", {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []})
    (block, rest) = told.goodbye().decode().split("\n\n")

    event = parsed(block)
    assert rest == ""
    assert event["response"]["id"] == told.id
    assert "shutting down" in event["response"]["error"]["message"]


AWKWARD = ['"', '""', "\\", "\n\r\t\0", "\u2028", "héllo 🎉", "%s {} %(a)s", '","delta":"x"}']


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
async def test_a_text_of_any_characters_comes_out_as_it_went_in(text: str) -> None:
    said = (ReplyEvent(reasoning=text), ReplyEvent(text=text), ReplyEvent(text=text), ending())
    chat = FakeChat(said)
    events = await streamed(chat)

    assert [event["delta"] for event in events if "delta" in event] == [text] * 3
    assert events[-1]["response"]["output"][1]["content"][0]["text"] == text * 2


async def test_an_event_that_holds_several_things_tells_them_in_their_order() -> None:
    call = CallDelta(0, "call_1", "weather", "{}")
    both = ReplyEvent(reasoning="hm", text="Yes", call=call)
    events = await streamed(FakeChat((both, replace(ending(), text="No"))), tools=[WEATHER])

    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == [
        "reasoning",
        "message",
        "function_call",
        "message",
    ]
    assert deltas(events) == "hmYes{}No"
