"""The Responses API as the openai package speaks it, over a loopback port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.engine.request import FinishReason
from localrun.errors import ContextLengthError, EngineCrashedError
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.served import served

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALLING = (
    ReplyEvent(reasoning="hm"),
    ReplyEvent(text="I look."),
    ReplyEvent(call=CallDelta(0, "call_1", "weather")),
    ReplyEvent(call=CallDelta(0, arguments='{"city": "Ulm"}')),
    ending(),
)


@asynccontextmanager
async def client_of(chat: FakeChat) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(create_app(FakeModels(fake=chat))) as port,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        yield client


async def test_a_text_is_created_and_streamed() -> None:
    async with client_of(FakeChat()) as client:
        whole = await client.responses.create(model="fake", input="Hi")
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        events = [event async for event in stream]

    assert whole.output_text == "Hello"
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 4
    told = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert told == ["Hel", "lo"]
    assert events[-1].type == "response.completed"


async def test_the_stream_helper_gathers_text_thought_and_call() -> None:
    async with (
        client_of(FakeChat(CALLING)) as client,
        client.responses.stream(model="fake", input="Hi", tools=[TOOL]) as stream,
    ):
        snapshots = [
            event.snapshot
            async for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        final = await stream.get_final_response()

    thought, message, call = final.output
    assert snapshots == ['{"city": "Ulm"}']
    assert (thought.type, message.type, final.output_text) == ("reasoning", "message", "I look.")
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Ulm"}


class City(BaseModel):
    name: str
    people: int


async def test_a_structured_answer_is_parsed() -> None:
    chat = FakeChat((ReplyEvent(text='{"name": "Ulm", "people": 126000}'), ending()))
    async with client_of(chat) as client:
        parsed = await client.responses.parse(model="fake", input="Hi", text_format=City)
        async with client.responses.stream(model="fake", input="Hi", text_format=City) as stream:
            streamed = await stream.get_final_response()

    assert parsed.output_parsed == streamed.output_parsed == City(name="Ulm", people=126000)
    grammar = chat.asked[0][1].grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["name", "people"]


async def test_a_call_and_its_output_go_on_as_one_conversation() -> None:
    chat = FakeChat(CALLING)
    async with client_of(chat) as client:
        first = await client.responses.create(model="fake", input="Hi", tools=[TOOL])
        given: Any = [
            {"role": "user", "content": "Hi"},
            *(item.model_dump() for item in first.output),
            {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
        ]
        await client.responses.create(model="fake", input=given, tools=[TOOL])

    messages = chat.asked[1][0]
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1].reasoning, messages[1].content) == ("hm", "I look.")
    assert messages[1].tool_calls[0].arguments == {"city": "Ulm"}
    assert messages[2].tool_call_id == "call_1"


async def test_a_limit_is_an_incomplete_response() -> None:
    async with client_of(FakeChat((ReplyEvent(text="a"), ending(FinishReason.LENGTH)))) as client:
        whole = await client.responses.create(model="fake", input="Hi", max_output_tokens=1)
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        events = [event async for event in stream]

    assert whole.status == "incomplete"
    assert events[-1].type == "response.incomplete"


async def test_errors_are_the_packages_own() -> None:
    async with client_of(FakeChat(error=ContextLengthError(5000, 4096))) as client:
        with pytest.raises(openai.BadRequestError) as over:
            await client.responses.create(model="fake", input="Hi")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="gpt-9", input="Hi")
        with pytest.raises(openai.BadRequestError) as gone:
            await client.responses.create(model="fake", input="Hi", previous_response_id="x")

    assert (over.value.code, over.value.param) == ("context_length_exceeded", "input")
    assert gone.value.code == "previous_response_not_found"


async def test_an_error_within_a_stream_is_a_failed_response() -> None:
    last = ReplyEvent(finish=FinishReason.ERROR, error=EngineCrashedError("SIGSEGV"))
    async with client_of(FakeChat((ReplyEvent(text="a"), last))) as client:
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        events = [event async for event in stream]

    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "SIGSEGV" in events[-1].response.error.message


async def test_a_client_that_leaves_ends_its_generation() -> None:
    chat = FakeChat((ReplyEvent(text="a"),), endless=True)
    async with client_of(chat) as client:
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await asyncio.wait_for(chat.ended.wait(), 30)

    assert chat.running == 0
