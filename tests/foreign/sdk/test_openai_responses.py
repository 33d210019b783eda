"""OpenAI's own client on the responses route, which Codex speaks too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
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

TOOL: Any = {
    "type": "function",
    "name": WEATHER,
    "description": WEATHER_TEXT,
    "parameters": CITY_SCHEMA,
    "strict": True,
}
NAMED: Any = {"type": "function", "name": WEATHER}
FORCED = {"required": "required", "named": NAMED}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:
        yield client


def test_a_response_has_a_text_and_its_tokens(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=CHAT_MODEL, input=QUESTION, max_output_tokens=SHORT, temperature=0
    )

    assert answer.output_text
    assert answer.status in ("completed", "incomplete")
    if answer.status == "incomplete":
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.input_tokens > 10
    assert 0 < answer.usage.output_tokens <= SHORT
    assert answer.usage.input_tokens_details.cached_tokens <= answer.usage.input_tokens


def test_streamed_events_come_in_order_and_gather_the_text(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=CHAT_MODEL, input=QUESTION, max_output_tokens=SHORT, temperature=0, stream=True
        )
    )

    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    (done,) = [event.text for event in events if event.type == "response.output_text.done"]
    assert len(deltas) > 1
    assert "".join(deltas) == done
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == done
    assert last.response.usage is not None
    assert last.response.usage.output_tokens > 0


def test_the_clients_own_stream_gathers_a_response(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=CHAT_MODEL,
        instructions="Answer in one word.",
        input=[{"role": "user", "content": QUESTION}],
        max_output_tokens=256,
        temperature=0,
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()

    assert "response.output_item.added" in kinds
    assert "response.content_part.done" in kinds
    assert answer.output_text


@pytest.mark.parametrize("choice", FORCED.values(), ids=FORCED)
def test_a_forced_call_has_arguments_of_its_schema(client: openai.OpenAI, choice: Any) -> None:
    answer = client.responses.create(
        model=CHAT_MODEL,
        input=QUESTION,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=FORM_TOKENS,
    )

    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == WEATHER
    assert call.call_id
    check_city(json.loads(call.arguments))


def test_a_streamed_call_concatenates_to_its_arguments(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=CHAT_MODEL,
            input=QUESTION,
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            max_output_tokens=FORM_TOKENS,
            stream=True,
        )
    )

    deltas = [
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    ]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done.arguments
    check_city(json.loads(done.arguments))


def test_a_tools_result_is_answered(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.responses.create(
        model=CHAT_MODEL,
        input=asked,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=FORM_TOKENS,
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"sky": "clear"}',
    }
    said = [item.model_dump(exclude_none=True) for item in first.output]
    turn: list[Any] = [*asked, *said, result]

    second = client.responses.create(
        model=CHAT_MODEL, input=turn, tools=[TOOL], tool_choice="none", max_output_tokens=SHORT
    )

    assert second.output_text


def test_a_form_is_parsed_into_its_model(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model=CHAT_MODEL, input=QUESTION, text_format=City, max_output_tokens=FORM_TOKENS
    )

    assert isinstance(answer.output_parsed, City)


def test_tools_that_only_their_maker_runs_are_no_reason_to_refuse(client: openai.OpenAI) -> None:
    foreign: list[Any] = [{"type": "web_search"}, {"type": "local_shell"}, TOOL]

    answer = client.responses.create(
        model=CHAT_MODEL, input=QUESTION, tools=foreign, max_output_tokens=SHORT
    )

    assert answer.output


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(model=UNKNOWN, input=QUESTION)

    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=CHAT_MODEL, input=TOO_LONG, stream=stream)

    assert refused.value.code == "context_length_exceeded"
    check_too_long(refused.value.message)


def test_an_answer_that_was_not_kept_cannot_be_gone_on_from(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="resp_never_given") as refused:
        client.responses.create(
            model=CHAT_MODEL, input=QUESTION, previous_response_id="resp_never_given"
        )

    assert refused.value.param == "previous_response_id"
