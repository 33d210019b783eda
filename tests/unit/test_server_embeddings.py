"""The embeddings API: vectors in order, as numbers or packed; what cannot be embedded by name."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from localrun.chat.messages import Prompt
from localrun.errors import ContextLengthError, EngineCrashedError, LocalrunError, RequestError
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.unit.test_server_chat import BASE, client_of

PATH = "/v1/embeddings"


async def ask(chat: FakeChat, **fields: Any) -> httpx2.Response:
    question = {"model": "fake", "input": "aab"} | fields
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        return await client.post(PATH, json=question)


async def test_an_answer_has_a_vector_for_each_text_in_their_order() -> None:
    response = await ask(FakeChat(), input=["aab", "cc"])

    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [2.0, 1.0, 0.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 0.0, 2.0, 0.0]},
        ],
        "model": "fake",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


async def test_packed_vectors_are_single_precision_least_byte_first() -> None:
    response = await ask(FakeChat(), encoding_format="base64")

    packed = base64.b64decode(response.json()["data"][0]["embedding"])
    assert packed == struct.pack("<4f", 2.0, 1.0, 0.0, 0.0)


INPUTS: dict[str, tuple[object, list[Prompt]]] = {
    "a text": ("aab", [Prompt.of("aab")]),
    "texts": (["a", "b"], [Prompt.of("a"), Prompt.of("b")]),
    "ids": ([1, 2], [Prompt((1, 2))]),
    "lists of ids": ([[1], [2]], [Prompt((1,)), Prompt((2,))]),
    "2048 texts": (["a"] * 2048, [Prompt.of("a")] * 2048),
}


@pytest.mark.parametrize(("written", "meant"), INPUTS.values(), ids=INPUTS.keys())
async def test_texts_may_be_written_in_four_ways(written: object, meant: list[Prompt]) -> None:
    chat = FakeChat()
    response = await ask(chat, input=written)

    assert response.status_code == 200
    assert list(chat.embedded[0][0]) == meant
    assert len(response.json()["data"]) == len(meant)


async def test_dimensions_are_asked_of_the_model_and_nothing_is_cut() -> None:
    chat = FakeChat()
    response = await ask(chat, dimensions=2)

    assert chat.embedded[0][1:] == (2, False)
    assert response.json()["data"][0]["embedding"] == [2.0, 1.0]


REFUSED: dict[str, tuple[Mapping[str, object], str]] = {
    "no model": ({"model": ""}, "model"),
    "no input": ({"input": None}, "input"),
    "an empty text": ({"input": ""}, "input"),
    "an empty list": ({"input": []}, "input"),
    "an empty text among others": ({"input": ["a", ""]}, "input"),
    "an empty list of ids": ({"input": [[]]}, "input"),
    "2049 texts": ({"input": ["a"] * 2049}, "input"),
    "a number": ({"input": 1}, "input"),
    "a broken id": ({"input": [1, 1.5]}, "input"),
    "an id below": ({"input": [-1]}, "input"),
    "an object": ({"input": {"text": "a"}}, "input"),
    "no dimensions": ({"dimensions": 0}, "dimensions"),
    "half a dimension": ({"dimensions": 1.5}, "dimensions"),
    "a format of no kind": ({"encoding_format": "hex"}, "encoding_format"),
    "a user of 513 characters": ({"user": "x" * 513}, "user"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_field_out_of_its_range_is_refused_by_name(
    fields: Mapping[str, object], param: str
) -> None:
    chat = FakeChat()
    response = await ask(chat, **fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert chat.embedded == []


ERRORS: dict[str, tuple[LocalrunError, int, str | None]] = {
    "too long": (ContextLengthError(600, 512), 400, "input"),
    "no embeddings": (RequestError("it makes no embeddings", field="model"), 400, "model"),
    "too many dimensions": (RequestError("it has 4", field="dimensions"), 400, "dimensions"),
    "crashed": (EngineCrashedError("gone"), 503, None),
}


@pytest.mark.parametrize(("error", "status", "param"), ERRORS.values(), ids=ERRORS.keys())
async def test_what_a_model_refuses_names_the_field(
    error: LocalrunError, status: int, param: str | None
) -> None:
    response = await ask(FakeChat(error=error))

    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_a_text_that_is_too_long_is_told_with_both_numbers() -> None:
    error = (await ask(FakeChat(error=ContextLengthError(600, 512)))).json()["error"]

    assert (error["n_prompt_tokens"], error["n_ctx"]) == (600, 512)


async def test_an_unknown_model_is_not_found() -> None:
    assert (await ask(FakeChat(), model="nobody")).status_code == 404


async def test_openai_s_own_client_unpacks_what_it_asks_for() -> None:
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=FakeChat())))
    http = httpx2.AsyncClient(transport=transport, base_url=BASE)
    async with AsyncOpenAI(base_url=f"{BASE}/v1", api_key="x", http_client=http) as client:
        made = await client.embeddings.create(model="fake", input=["aab", "d"])

    assert [each.embedding for each in made.data] == [[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_others_have_their_turns_while_thousands_of_vectors_are_told(form: str) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    texts = ["a" * n for n in range(1, 2049)]
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        counting = asyncio.ensure_future(others())
        await client.post(PATH, json={"model": "fake", "input": "a"})
        for_one, turns = turns, 0
        question = {"model": "fake", "input": texts, "encoding_format": form}
        response = await client.post(PATH, json=question)
        counting.cancel()

    data = response.json()["data"]
    assert turns - for_one >= 2048 / 16
    assert [each["index"] for each in data] == list(range(2048))
    if form == "float":
        assert [each["embedding"][0] for each in data] == list(range(1, 2049))
