"""OpenAI's own client on completions and embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from asked import ALIKE, SHORT, TOO_LONG, UNKNOWN, UNLIKE, check_likeness, check_too_long, cosine
from served import CHAT_MODEL, DIMENSIONS, MINILM, Served

PROMPT = "The capital of France is"


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:
        yield client


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT_MODEL, prompt=PROMPT, max_tokens=SHORT, temperature=0
    )

    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens >= 5
    assert 0 < answer.usage.completion_tokens <= SHORT


def test_a_streamed_text_is_the_whole_one_in_parts(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=CHAT_MODEL, prompt=PROMPT, max_tokens=SHORT, temperature=0
    )
    chunks = list(
        client.completions.create(
            model=CHAT_MODEL,
            prompt=PROMPT,
            max_tokens=SHORT,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    parts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert len(parts) > 1
    assert "".join(parts) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_prompts_are_answered_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT_MODEL, prompt=[PROMPT, "One, two,"], max_tokens=4, temperature=0, echo=True
    )

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith(PROMPT)
    assert answer.choices[1].text.startswith("One, two,")


def test_a_suffix_without_infill_tokens_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="fill-in-the-middle"):
        client.completions.create(
            model=CHAT_MODEL, prompt="def one():\n", suffix="\n", max_tokens=4
        )


def test_a_completion_of_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=UNKNOWN, prompt=PROMPT)


def test_a_text_over_the_context_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=CHAT_MODEL, prompt=TOO_LONG, max_tokens=4)

    check_too_long(refused.value.message)


def test_alike_texts_have_alike_vectors(client: openai.OpenAI) -> None:
    # Asks for base64, and unpacks it.
    answer = client.embeddings.create(model=str(MINILM), input=[*ALIKE, UNLIKE])

    assert [each.index for each in answer.data] == [0, 1, 2]
    check_likeness([each.embedding for each in answer.data], DIMENSIONS)
    assert answer.usage.prompt_tokens > 15
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_vectors_as_numbers_are_those_in_base64(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model=str(MINILM), input=UNLIKE).data[0].embedding
    numbers = client.embeddings.create(model=str(MINILM), input=UNLIKE, encoding_format="float")

    assert len(numbers.data[0].embedding) == DIMENSIONS
    assert cosine(numbers.data[0].embedding, packed) > 0.99999


def test_a_chat_with_a_model_of_vectors_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=str(MINILM), messages=[{"role": "user", "content": "Hi"}]
        )
