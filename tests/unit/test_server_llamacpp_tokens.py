"""llama.cpp's routes for tokens and templates."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
import pytest

from localrun.errors import ContextLengthError
from tests.fake_chat import FakeChat, FakeModels
from tests.unit.test_server_llamacpp import post


async def tokens(path: str, **fields: object) -> httpx2.Response:
    return await post(FakeModels(fake=FakeChat()), path, fields)


async def test_text_becomes_ids_and_ids_text() -> None:
    assert (await tokens("/tokenize", content="Hi")).json() == {"tokens": [72, 105]}
    assert (await tokens("/tokenize", content="H", add_special=True)).json()["tokens"] == [1000, 72]
    assert (await tokens("/tokenize", content=["H", 105, "!"])).json()["tokens"] == [72, 105, 33]
    assert (await tokens("/tokenize")).json() == {"tokens": []}
    assert (await tokens("/detokenize", tokens=[72, 105])).json() == {"content": "Hi"}
    assert (await tokens("/detokenize")).json() == {"content": ""}


async def test_pieces_are_texts_or_the_bytes_of_what_is_none() -> None:
    response = await tokens("/tokenize", content="aé", with_pieces=True)

    assert response.json()["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
    ]


async def test_a_conversation_becomes_the_prompt_that_it_would_be() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    response = await tokens("/apply-template", messages=messages)

    assert response.json() == {"prompt": "<user>Hi"}


TOKENS_REFUSED: dict[str, tuple[str, Mapping[str, object], str]] = {
    "content a number": ("/tokenize", {"content": 5}, "content"),
    "content an object": ("/tokenize", {"content": {"a": 1}}, "content"),
    "pieces in words": ("/tokenize", {"with_pieces": "yes"}, "with_pieces"),
    "an id in words": ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    "an id below": ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    "an id that no token has": ("/detokenize", {"tokens": [300]}, "tokens"),
    "no messages": ("/apply-template", {"messages": []}, "messages"),
    "a role of no kind": (
        "/apply-template",
        {"messages": [{"role": "x", "content": "a"}]},
        "messages[0].role",
    ),
}


@pytest.mark.parametrize(
    ("path", "fields", "param"), TOKENS_REFUSED.values(), ids=TOKENS_REFUSED.keys()
)
async def test_what_is_no_text_is_refused_by_name(
    path: str, fields: Mapping[str, object], param: str
) -> None:
    response = await tokens(path, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_conversation_over_the_context_is_told_with_both_numbers() -> None:
    models = FakeModels(fake=FakeChat(error=ContextLengthError(200, 100)))
    messages = [{"role": "user", "content": "Hi"}]
    response = await post(models, "/apply-template", {"messages": messages})

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["n_prompt_tokens"], error["n_ctx"], error["param"]) == (200, 100, "messages")
