"""Ollama's own client on its routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
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
    check_likeness,
    check_too_long,
)
from served import CHAT_MODEL, DIMENSIONS, MINILM, N_CTX, Served

ASKED = [{"role": "user", "content": QUESTION}]
FEW = {"num_predict": SHORT, "temperature": 0}
TOOL: Any = {
    "type": "function",
    "function": {"name": WEATHER, "description": WEATHER_TEXT, "parameters": CITY_SCHEMA},
}


@pytest.fixture
def client(server: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def test_models_are_listed_with_their_sizes(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}

    (name,) = [name for name in models if name in (CHAT_MODEL, f"{CHAT_MODEL}:latest")]
    assert models[name].size is not None
    assert models[name].size > 10_000_000
    assert models[name].details is not None
    assert models[name].details.family == "llama"


def test_a_model_is_shown_with_what_it_can_do(client: ollama.Client) -> None:
    shown = client.show(CHAT_MODEL)

    # The model's own template knows no tools.
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == N_CTX


def test_a_model_of_vectors_is_shown_as_one(client: ollama.Client) -> None:
    assert client.show(str(MINILM)).capabilities == ["embedding"]


def test_loaded_models_are_told(client: ollama.Client) -> None:
    client.chat(CHAT_MODEL, ASKED, options=FEW)

    loaded = {model.model: model for model in client.ps().models}
    (name,) = [name for name in loaded if name in (CHAT_MODEL, f"{CHAT_MODEL}:latest")]
    assert loaded[name].size
    assert loaded[name].context_length == N_CTX


def test_an_answer_has_a_text_a_reason_and_its_tokens(client: ollama.Client) -> None:
    answer = client.chat(CHAT_MODEL, ASKED, options=FEW)

    assert answer.message.content
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 10
    assert answer.eval_count is not None
    assert 0 < answer.eval_count <= SHORT
    assert answer.total_duration
    assert answer.eval_duration
    assert answer.total_duration >= answer.eval_duration


def test_a_streamed_answer_is_the_whole_one_in_parts(client: ollama.Client) -> None:
    whole = client.chat(CHAT_MODEL, ASKED, options=FEW)
    parts = list(client.chat(CHAT_MODEL, ASKED, options=FEW, stream=True))

    assert len(parts) > 2
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


def test_a_form_is_answered(client: ollama.Client) -> None:
    answer = client.chat(
        CHAT_MODEL, ASKED, format=CITY_SCHEMA, options={"num_predict": FORM_TOKENS}
    )

    City.model_validate_json(answer.message.content or "")


def test_tools_and_their_results_are_taken(client: ollama.Client) -> None:
    call = {"function": {"name": WEATHER, "arguments": {"city": "Paris", "days": 1}}}
    turn: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": WEATHER, "content": '{"sky": "clear"}'},
    ]

    answer = client.chat(CHAT_MODEL, turn, tools=[TOOL], options=FEW)

    assert answer.message.content or answer.message.tool_calls


def test_a_text_is_generated(client: ollama.Client) -> None:
    whole = client.generate(CHAT_MODEL, QUESTION, system="Answer briefly.", options=FEW)
    parts = list(
        client.generate(CHAT_MODEL, QUESTION, system="Answer briefly.", options=FEW, stream=True)
    )

    assert whole.response
    assert "".join(part.response for part in parts) == whole.response
    assert parts[-1].done
    assert parts[-1].eval_count == whole.eval_count


def test_a_raw_text_is_continued(client: ollama.Client) -> None:
    answer = client.generate(CHAT_MODEL, "The capital of France is", raw=True, options=FEW)

    assert answer.response
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count < 10


def test_a_suffix_without_infill_tokens_is_refused(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(CHAT_MODEL, "def one():\n", suffix="\n", options=FEW)

    assert refused.value.status_code == 400


def test_alike_texts_have_alike_vectors(client: ollama.Client) -> None:
    answer = client.embed(str(MINILM), [*ALIKE, UNLIKE])

    check_likeness([list(vector) for vector in answer.embeddings], DIMENSIONS)
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 15


def test_the_older_embeddings_route_gives_one_vector(client: ollama.Client) -> None:
    answer = client.embeddings(str(MINILM), UNLIKE)

    assert len(answer.embedding) == DIMENSIONS


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: ollama.Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        list(client.chat(UNKNOWN, ASKED, stream=stream))

    assert refused.value.status_code == 404
    assert UNKNOWN in refused.value.error


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat(CHAT_MODEL, [{"role": "user", "content": TOO_LONG}], options=FEW)

    assert refused.value.status_code == 400
    check_too_long(refused.value.error)


def test_a_model_on_this_disk_is_pulled_in_an_instant(client: ollama.Client) -> None:
    told = [progress.status for progress in client.pull(CHAT_MODEL, stream=True)]

    assert told[-1] == "success"
