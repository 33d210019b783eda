"""litellm, which many programs call models through, by three of its routes."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from asked import (
    ALIKE,
    CITY_SCHEMA,
    FORM_TOKENS,
    QUESTION,
    SHORT,
    TOO_LONG,
    UNKNOWN,
    UNLIKE,
    WEATHER,
    WEATHER_TEXT,
    City,
    check_city,
    check_likeness,
    check_too_long,
)
from served import CHAT_MODEL, DIMENSIONS, MINILM, Served

ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {"name": WEATHER, "description": WEATHER_TEXT, "parameters": CITY_SCHEMA},
}
# Of its own types and unclosed sockets it warns by the dozen; what it says of answers it raises.
pytestmark = pytest.mark.filterwarnings("ignore")
ROUTES = ("openai", "anthropic", "ollama_chat")


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, server: Served) -> dict[str, Any]:
    """How a route is named, and where it finds the server."""
    base = server.v1 if request.param == "openai" else server.url
    return {
        "model": f"{request.param}/{CHAT_MODEL}",
        "api_base": base,
        "api_key": "none",
        "num_retries": 0,
    }


def test_an_answer_has_a_text_and_its_tokens(route: dict[str, Any]) -> None:
    answer = litellm.completion(**route, messages=ASKED, max_tokens=SHORT)

    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= SHORT


def test_an_answer_streams(route: dict[str, Any]) -> None:
    chunks = list(
        litellm.completion(
            **route,
            messages=ASKED,
            max_tokens=SHORT,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    parts = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert len([part for part in parts if part]) > 1
    gathered = litellm.stream_chunk_builder(chunks, messages=ASKED)
    assert gathered.choices[0].message.content == "".join(part or "" for part in parts)
    assert gathered.usage.prompt_tokens > 10


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_forced_call_has_arguments_of_its_schema(server: Served, name: str) -> None:
    answer = litellm.completion(
        model=f"{name}/{CHAT_MODEL}",
        api_base=server.v1 if name == "openai" else server.url,
        api_key="none",
        messages=ASKED,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=FORM_TOKENS,
    )

    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == WEATHER
    check_city(json.loads(call.function.arguments))


@pytest.mark.parametrize("name", ["openai", "ollama_chat"])
def test_a_form_is_answered(server: Served, name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA}}
    answer = litellm.completion(
        model=f"{name}/{CHAT_MODEL}",
        api_base=server.v1 if name == "openai" else server.url,
        api_key="none",
        messages=ASKED,
        response_format=form,
        max_tokens=FORM_TOKENS,
    )

    City.model_validate_json(answer.choices[0].message.content)


def test_a_text_is_continued(server: Served) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{CHAT_MODEL}",
        api_base=server.v1,
        api_key="none",
        prompt="The capital of France is",
        max_tokens=SHORT,
    )

    assert answer.choices[0].text
    assert answer.usage.completion_tokens > 0


def test_a_response_is_given(server: Served) -> None:
    answer = litellm.responses(
        model=f"openai/{CHAT_MODEL}",
        api_base=server.v1,
        api_key="none",
        input=QUESTION,
        max_output_tokens=SHORT,
    )

    assert answer.output_text
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize("name", ["openai", "ollama"])
def test_alike_texts_have_alike_vectors(server: Served, name: str) -> None:
    answer = litellm.embedding(
        model=f"{name}/{MINILM}",
        api_base=server.v1 if name == "openai" else server.url,
        api_key="none",
        input=[*ALIKE, UNLIKE],
    )

    check_likeness([each["embedding"] for each in answer.data], DIMENSIONS)


# It tells Ollama's refusals by their words alone.
@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_an_unknown_model_is_not_found(server: Served, name: str) -> None:
    with pytest.raises(litellm.NotFoundError, match=UNKNOWN):
        litellm.completion(
            model=f"{name}/{UNKNOWN}",
            api_base=server.v1 if name == "openai" else server.url,
            api_key="none",
            num_retries=0,
            messages=ASKED,
        )


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_prompt_over_the_context_is_refused_with_both_numbers(server: Served, name: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError) as refused:
        litellm.completion(
            model=f"{name}/{CHAT_MODEL}",
            api_base=server.v1 if name == "openai" else server.url,
            api_key="none",
            num_retries=0,
            messages=[{"role": "user", "content": TOO_LONG}],
            max_tokens=SHORT,
        )

    check_too_long(str(refused.value))
