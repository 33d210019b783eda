"""Parts of contents: what is text to one of OpenAI's APIs is text to the other too."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import client_of

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"type": "text", "text": "a"}, "a"),
    "input": ({"type": "input_text", "text": "a"}, "a"),
    "output": ({"type": "output_text", "text": "a", "annotations": []}, "a"),
    "a refusal": ({"type": "refusal", "refusal": "I will not."}, "I will not."),
    "a thought": ({"type": "reasoning_text", "text": "a"}, "a"),
    "a summary": ({"type": "summary_text", "text": "a"}, "a"),
    "sealed": ({"type": "encrypted_content", "data": "x"}, ""),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ("a", "part 0 is no object with a type"),
    "no type": ({"text": "a"}, "part 0 is no object with a type"),
    "a sound": ({"type": "input_audio"}, "part 0 has the type 'input_audio': this server takes"),
    "no text": ({"type": "text"}, "part 0 has no text"),
    "a text of a number": ({"type": "input_text", "text": 1}, "part 0 has no text"),
    "a refusal of no words": ({"type": "refusal", "text": "a"}, "part 0 has no refusal"),
    "an image": (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        "this model takes no images: it has no projector",
    ),
    "an image of the other API": (
        {"type": "input_image", "image_url": "DATA:image/png;base64,AA=="},
        "this model takes no images: it has no projector",
    ),
    "an uploaded image": ({"type": "input_image", "file_id": "f"}, "takes no images"),
    "an image far off": (
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        "URLs are never fetched",
    ),
    "an image far off, short": (
        {"type": "image_url", "image_url": "//example.org/x.png"},
        "send the image itself in base64, as data:image/",
    ),
}


async def post(chat: FakeChat, path: str, content: list[Any]) -> tuple[int, str]:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    field = "input" if path == "/v1/responses" else "messages"
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        response = await client.post(path, json={"model": "fake", field: turns})
    return response.status_code, response.text


PATHS = ["/v1/chat/completions", "/v1/responses"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("part", "text"), KINDS.values(), ids=KINDS.keys())
async def test_every_kind_of_text_is_text_to_both(
    path: str, part: dict[str, Any], text: str
) -> None:
    chat = FakeChat()
    status, answer = await post(chat, path, [part])

    assert status == 200, answer
    assert chat.asked[0][0][1].content == text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("part", "why"), REFUSED.values(), ids=REFUSED.keys())
async def test_every_other_kind_is_refused_by_both_in_the_same_words(
    path: str, part: Any, why: str
) -> None:
    status, answer = await post(FakeChat(), path, [part])

    assert (status, why in answer) == (400, True), answer


async def test_parts_of_a_chat_are_one_text() -> None:
    chat = FakeChat()
    parts = [{"type": "text", "text": "a "}, {"type": "output_text", "text": "b"}]
    await post(chat, "/v1/chat/completions", parts)

    assert chat.asked[0][0][1].content == "a b"
