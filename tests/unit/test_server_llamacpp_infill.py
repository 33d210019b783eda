"""llama.cpp's ``/infill``: a gap and everything around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from localrun.chat.messages import Gap, Snippet
from tests.fake_chat import INFO, FakeChat
from tests.unit.test_server_llamacpp import infill


async def test_a_gap_reaches_the_model_with_everything_around_it() -> None:
    chat = FakeChat()
    extra = [
        {"text": "one", "filename": "1.py", "time": [1, 2]},
        {"text": "two", "time": 5.5},
    ]
    document = (await infill(chat, input_extra=extra, prompt="    re", n_predict=4)).json()

    ((gap,), options) = chat.filled[0]
    assert gap == Gap(
        "def f(", "):\n    pass\n", "    re", (Snippet("one", "1.py"), Snippet("two"))
    )
    assert options.max_tokens == 4
    assert (document["content"], document["stop"]) == ("Hello", True)
    assert document["prompt"] == "def f(    re"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_model_that_fills_no_gap_says_which_tokens_it_lacks(stream: bool) -> None:
    response = await infill(FakeChat(info=replace(INFO, fim=None)), stream=stream)

    error = response.json()["error"]
    assert response.status_code == 400
    assert "fill-in-the-middle tokens" in error["message"]
    assert error["param"] == "model"


async def test_a_gap_in_an_empty_file_is_a_gap() -> None:
    chat = FakeChat()

    assert (await infill(chat, input_prefix="", input_suffix="")).status_code == 200
    assert list(chat.filled[0][0]) == [Gap("", "")]


INFILL_REFUSED: dict[str, tuple[Mapping[str, object], str]] = {
    "no prefix": ({"input_prefix": None}, "input_prefix"),
    "a suffix of lines": ({"input_suffix": ["a"]}, "input_suffix"),
    "a prompt of ids": ({"prompt": [1]}, "prompt"),
    "extra of no list": ({"input_extra": {"text": "a"}}, "input_extra"),
    "extra without a text": ({"input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
    "extra of a text": ({"input_extra": ["a"]}, "input_extra[0]"),
    "a name that is a number": (
        {"input_extra": [{"text": "a", "filename": 1}]},
        "input_extra[0].filename",
    ),
}


@pytest.mark.parametrize(("fields", "param"), INFILL_REFUSED.values(), ids=INFILL_REFUSED.keys())
async def test_what_is_no_gap_is_refused_by_name(fields: Mapping[str, object], param: str) -> None:
    chat = FakeChat()
    response = await infill(chat, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert chat.filled == []
