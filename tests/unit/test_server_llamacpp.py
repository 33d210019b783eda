"""llama.cpp's own routes, as the editors that were made for them use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import ReplyEvent
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.unit.test_server_chat import client_of

INFILL = {"input_prefix": "def f(", "input_suffix": "):\n    pass\n"}


async def post(models: FakeModels, path: str, body: Mapping[str, object]) -> httpx2.Response:
    async with client_of(create_app(models)) as client:
        headers = {"content-type": "application/json"}
        return await client.post(path, content=json.dumps(dict(body)), headers=headers)


async def complete(chat: FakeChat, **fields: object) -> httpx2.Response:
    return await post(FakeModels(fake=chat), "/completion", {"prompt": "Say"} | fields)


async def infill(chat: FakeChat, **fields: object) -> httpx2.Response:
    return await post(FakeModels(fake=chat), "/infill", INFILL | fields)


async def get(models: FakeModels, path: str) -> httpx2.Response:
    async with client_of(create_app(models)) as client:
        return await client.get(path)


def events_of(response: httpx2.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


RECORDED = (
    "llama_vim",
    "llama_vscode",
    "minuet",
    "continue_llamacpp",
    "continue_openai",
    "zed_llamacpp",
)


def recorded() -> list[tuple[str, str]]:
    return [(name, about) for name in RECORDED for about in client_file(name)["requests"]]


def client_file(name: str) -> dict[str, Any]:
    path = Path(__file__).parents[1] / "clients" / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert document["source"]
    return document


def read(document: Any, path: str) -> Any:
    """A value by its names and places; a name that holds the slashes itself comes first."""
    if isinstance(document, dict) and path in document:
        return document[path]
    first, _, rest = path.partition("/")
    inner = document[int(first) if first.isdigit() else first]
    return read(inner, rest) if rest else inner


@pytest.mark.parametrize(("name", "about"), recorded())
async def test_a_request_of_an_editor_is_answered_with_what_it_reads(name: str, about: str) -> None:
    known = client_file(name)
    request, fields = known["requests"][about], known["reads"][about]
    chat = FakeChat((ReplyEvent(text="items:", tokens=(1, 2)), ending()))
    body = request.get("body")

    async with client_of(create_app(FakeModels(fake=chat))) as client:
        response = await client.request(request["method"], request["path"], json=body)

    assert response.status_code == 200, response.text
    if body is not None and body.get("stream"):
        lines = [line for line in response.text.split("\n") if line and line != "data: [DONE]"]
        told = [json.loads(line.removeprefix("data: ")) for line in lines]
        # Of a chunk without the field its reader takes nothing.
        document = next(each for each in told if "items:" in json.dumps(each))
    else:
        document = response.json()
    for field in fields:
        assert read(document, field) is not None
    if body is not None and "response_fields" in body:
        assert set(document) <= set(body["response_fields"])
        # llama.vim asks for all but the last under the names that it reads.
        assert set(fields) == set(document)


async def test_what_llama_vim_sends_is_what_it_means() -> None:
    chat = FakeChat()
    body = client_file("llama_vim")["requests"]["fim"]["body"]
    await post(FakeModels(fake=chat), "/infill", body)

    ((gap,), options) = chat.filled[0]
    assert gap.prefix + gap.begun == "def total(items):\n    result = 0\n    for item in "
    assert [snippet.name for snippet in gap.snippets] == ["shapes.py", "main.py"]
    assert (options.max_tokens, options.min_indent) == (128, 4)
    assert (options.max_prefill_s, options.max_decode_s) == (0.5, 0.25)
