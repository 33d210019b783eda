"""Anthropic's own client on the messages route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from asked import (
    CITY_SCHEMA,
    FORM_TOKENS,
    QUESTION,
    SHORT,
    TOO_LONG,
    UNKNOWN,
    WEATHER,
    WEATHER_TEXT,
    City,
    check_city,
    check_too_long,
)
from served import CHAT_MODEL, Served

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"name": WEATHER, "description": WEATHER_TEXT, "input_schema": CITY_SCHEMA}
ANY: Any = {"type": "any", "disable_parallel_tool_use": True}
NAMED: Any = {"type": "tool", "name": WEATHER, "disable_parallel_tool_use": True}
FORCED = {"any": ANY, "named": NAMED}


@pytest.fixture
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_has_a_text_a_reason_and_its_tokens(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model=CHAT_MODEL, max_tokens=SHORT, system="Answer briefly.", messages=ASKED
    )

    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.role == "assistant"
    assert answer.stop_reason in ("end_turn", "max_tokens")
    cached = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + cached > 10
    assert 0 < answer.usage.output_tokens <= SHORT


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model=CHAT_MODEL,
        max_tokens=64,
        stop_sequences=["a", "e", "i", "o"],
        messages=ASKED,
    )

    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence in ("a", "e", "i", "o")


def test_raw_events_come_in_order(client: anthropic.Anthropic) -> None:
    events = list(
        client.messages.create(model=CHAT_MODEL, max_tokens=SHORT, messages=ASKED, stream=True)
    )

    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[1] == "content_block_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1
    last = events[-2]
    assert last.type == "message_delta"
    assert last.delta.stop_reason in ("end_turn", "max_tokens")
    assert 0 < last.usage.output_tokens <= SHORT


def test_the_clients_own_stream_gathers_the_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=CHAT_MODEL, max_tokens=SHORT, messages=ASKED) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()

    (block,) = message.content
    assert block.type == "text"
    assert len(texts) > 1
    assert "".join(texts) == block.text
    cached = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + cached > 10
    assert message.usage.output_tokens > 0


def test_tokens_counted_are_those_of_the_message(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=CHAT_MODEL, messages=ASKED)
    answer = client.messages.create(model=CHAT_MODEL, max_tokens=1, messages=ASKED)

    usage = answer.usage
    parts = (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens)
    assert counted.input_tokens == sum(part or 0 for part in parts)


def test_tools_count_too(client: anthropic.Anthropic) -> None:
    without = client.messages.count_tokens(model=CHAT_MODEL, messages=ASKED)
    with_tools = client.messages.count_tokens(model=CHAT_MODEL, messages=ASKED, tools=[TOOL])

    assert with_tools.input_tokens > without.input_tokens + 20


@pytest.mark.parametrize("choice", FORCED.values(), ids=FORCED)
def test_a_forced_call_has_an_input_of_its_schema(client: anthropic.Anthropic, choice: Any) -> None:
    answer = client.messages.create(
        model=CHAT_MODEL, max_tokens=FORM_TOKENS, messages=ASKED, tools=[TOOL], tool_choice=choice
    )

    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.id
    assert call.name == WEATHER
    assert isinstance(call.input, dict)
    check_city(call.input)


def test_a_streamed_call_gathers_to_its_input(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=CHAT_MODEL,
        max_tokens=FORM_TOKENS,
        messages=ASKED,
        tools=[TOOL],
        tool_choice=ANY,
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()

    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert "".join(parts)
    assert isinstance(call.input, dict)
    check_city(call.input)
    assert message.stop_reason == "tool_use"


def test_a_tools_result_is_answered(client: anthropic.Anthropic) -> None:
    first = client.messages.create(
        model=CHAT_MODEL,
        max_tokens=FORM_TOKENS,
        messages=ASKED,
        tools=[TOOL],
        tool_choice=ANY,
    )
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"sky": "clear"}'}
    turn: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]

    second = client.messages.create(
        model=CHAT_MODEL,
        max_tokens=SHORT,
        messages=turn,
        tools=[TOOL],
        tool_choice={"type": "none"},
    )

    assert [block.type for block in second.content] == ["text"]


def test_a_form_is_parsed_into_its_model(client: anthropic.Anthropic) -> None:
    answer = client.messages.parse(
        model=CHAT_MODEL, max_tokens=FORM_TOKENS, messages=ASKED, output_format=City
    )

    assert isinstance(answer.parsed_output, City)


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    assert CHAT_MODEL in [model.id for model in client.models.list()]


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.messages.create(model=UNKNOWN, max_tokens=SHORT, messages=ASKED)

    assert isinstance(refused.value.body, dict)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "not_found_error"
    assert refused.value.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    client: anthropic.Anthropic, stream: bool
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(
            model=CHAT_MODEL,
            max_tokens=SHORT,
            messages=[{"role": "user", "content": TOO_LONG}],
            stream=stream,
        )

    assert isinstance(refused.value.body, dict)
    check_too_long(refused.value.body["error"]["message"])


def test_a_field_out_of_range_is_named(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(
            model=CHAT_MODEL, max_tokens=SHORT, messages=ASKED, extra_body={"temperature": 99}
        )
