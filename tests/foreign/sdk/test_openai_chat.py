"""OpenAI's own client on the chat route: answers, forms, calls, refusals."""

from __future__ import annotations

import asyncio
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

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
TOOL: Any = {
    "type": "function",
    "function": {"name": WEATHER, "description": WEATHER_TEXT, "parameters": CITY_SCHEMA},
}
NAMED: Any = {"type": "function", "function": {"name": WEATHER}}
FORCED = {"required": "required", "named": NAMED}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_one_is_told_of(client: openai.OpenAI) -> None:
    assert CHAT_MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL


def test_an_answer_has_a_text_a_reason_and_its_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=ASKED, max_completion_tokens=SHORT, temperature=0
    )

    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= SHORT
    total = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == total


def test_a_prompt_asked_again_is_told_as_cached(client: openai.OpenAI) -> None:
    for _ in range(2):
        answer = client.chat.completions.create(
            model=CHAT_MODEL, messages=ASKED, max_tokens=1, temperature=0
        )

    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens


def test_a_streamed_answer_is_the_whole_one_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=CHAT_MODEL, messages=ASKED, max_tokens=SHORT, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model=CHAT_MODEL,
            messages=ASKED,
            max_tokens=SHORT,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [finish for finish in finishes if finish] == [whole.choices[0].finish_reason]


def test_the_clients_own_stream_gathers_the_same_text(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=CHAT_MODEL, messages=ASKED, max_tokens=SHORT, temperature=0
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        gathered = stream.get_final_completion()

    assert len(deltas) > 1
    assert "".join(deltas) == gathered.choices[0].message.content


def test_answers_asked_for_at_once_all_come(server: Served) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=CHAT_MODEL, messages=ASKED, max_tokens=8, seed=seed
                    )
                    for seed in range(3)
                )
            )

    answers = asyncio.run(ask())
    assert all(answer.choices[0].message.content for answer in answers)
    assert len({answer.id for answer in answers}) == 3


def test_logprobs_are_of_the_tokens_of_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=ASKED, max_tokens=8, logprobs=True, top_logprobs=2, temperature=0
    )

    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    assert "".join(each.token for each in choice.logprobs.content) == choice.message.content
    assert all(
        each.logprob <= 0 and len(each.top_logprobs) == 2 for each in choice.logprobs.content
    )


@pytest.mark.parametrize("choice", FORCED.values(), ids=FORCED)
def test_a_forced_call_has_arguments_of_its_schema(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=ASKED,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=FORM_TOKENS,
    )

    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == WEATHER
    check_city(json.loads(call.function.arguments))


def test_a_streamed_call_concatenates_to_its_arguments(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=ASKED,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=FORM_TOKENS,
        stream=True,
    )

    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    functions = [call.function for call in calls if call.function is not None]
    assert {call.index for call in calls} == {0}
    assert [call.id for call in calls if call.id]
    assert [function.name for function in functions if function.name] == [WEATHER]
    check_city(json.loads("".join(function.arguments or "" for function in functions)))
    assert choices[-1].finish_reason == "tool_calls"


def test_a_tools_result_is_answered(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=ASKED,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=FORM_TOKENS,
    )
    said = first.choices[0].message
    (call,) = said.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    turn: list[Any] = [*ASKED, said, result]

    second = client.chat.completions.create(
        model=CHAT_MODEL, messages=turn, tools=[TOOL], tool_choice="none", max_tokens=SHORT
    )

    assert second.choices[0].message.content
    assert second.choices[0].finish_reason in ("stop", "length")


def test_a_form_is_parsed_into_its_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=CHAT_MODEL, messages=ASKED, response_format=City, max_tokens=FORM_TOKENS
    )

    assert isinstance(answer.choices[0].message.parsed, City)


def test_json_mode_answers_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Say {} in JSON."}],
        response_format={"type": "json_object"},
        max_tokens=256,
        temperature=0,
    )

    content = answer.choices[0].message.content or ""
    assert content.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model=UNKNOWN, messages=ASKED)

    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    assert UNKNOWN in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=CHAT_MODEL, messages=[{"role": "user", "content": TOO_LONG}], stream=stream
        )

    assert refused.value.code == "context_length_exceeded"
    check_too_long(refused.value.message)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a temperature out of range": ({"temperature": 99}, "temperature"),
    "no tokens at all": ({"max_tokens": 0}, "max_tokens"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools"),
    "a form nobody knows": ({"response_format": {"type": "poem"}}, "response_format"),
}


@pytest.mark.parametrize(("fields", "name"), BAD.values(), ids=BAD)
def test_a_bad_field_is_named(client: openai.OpenAI, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=CHAT_MODEL, messages=ASKED, extra_body=fields)

    assert name in refused.value.message or name in (refused.value.param or "")
