"""Several choices and their logprobs in the shapes that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings, TokenLogprob
from localrun.errors import EngineError
from localrun.server.openai import chat_answer
from tests.fake_chat import TIMINGS, ending

FIRST = replace(TIMINGS, cached_tokens=4)
SECOND = replace(TIMINGS, cached_tokens=9, generated_tokens=2)
TWO = (
    ReplyEvent(text="a", choice=0),
    ReplyEvent(text="b", choice=1),
    ReplyEvent(reasoning="hm", choice=1),
    ReplyEvent(text="a", choice=0),
    ReplyEvent(finish=FinishReason.LENGTH, timings=FIRST, choice=0),
    ReplyEvent(text="b", choice=1),
    ReplyEvent(finish=FinishReason.STOP, timings=SECOND, choice=1),
)
EURO = TokenLogprob(5, "€".encode()[:2], -0.25, ((5, "€".encode()[:2], -0.25), (6, b"x", -1.5)))
NEVER = TokenLogprob(7, b"y", float("-inf"))


async def stream_of(events: tuple[ReplyEvent, ...]) -> AsyncGenerator[ReplyEvent]:
    for event in events:
        yield event


async def whole(events: tuple[ReplyEvent, ...], n: int = 1) -> dict[str, Any]:
    return await chat_answer.completion("m", stream_of(events), n)


async def streamed(
    events: tuple[ReplyEvent, ...], n: int = 1, *, include_usage: bool = False
) -> list[Any]:
    made = chat_answer.chunks("m", stream_of(events), n, include_usage=include_usage)
    lines = [line[6:].decode() async for line in made]
    assert lines.pop() == "[DONE]\n\n"
    return [json.loads(line) for line in lines]


async def test_choices_that_come_interleaved_are_whole_each_by_its_index() -> None:
    document = await whole(TWO, 2)

    assert [choice["index"] for choice in document["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in document["choices"]] == ["aa", "bb"]
    assert [choice["finish_reason"] for choice in document["choices"]] == ["length", "stop"]
    assert document["choices"][1]["message"]["reasoning_content"] == "hm"
    assert "reasoning_content" not in document["choices"][0]["message"]


async def test_the_prompt_of_several_choices_counts_once_and_their_tokens_together() -> None:
    *_, last = await streamed(TWO, 2, include_usage=True)

    assert last["choices"] == []
    assert last["usage"] == (await whole(TWO, 2))["usage"]
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def test_one_stream_carries_every_choice_with_its_index() -> None:
    chunks = [chunk["choices"][0] for chunk in await streamed(TWO, 2)]

    assert [(chunk["index"], chunk["delta"]) for chunk in chunks[:2]] == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
    ]
    texts = {0: "", 1: ""}
    for chunk in chunks[2:]:
        texts[chunk["index"]] += chunk["delta"].get("content", "")
    assert texts == {0: "aa", 1: "bb"}
    ends = [(chunk["index"], chunk["finish_reason"]) for chunk in chunks if chunk["finish_reason"]]
    assert ends == [(0, "length"), (1, "stop")]


async def test_a_choice_that_never_ends_is_an_error() -> None:
    with pytest.raises(EngineError, match="without a last event"):
        await whole((ReplyEvent(text="a"), ending()), 2)


async def test_a_choice_that_fails_fails_the_answer() -> None:
    failed = ReplyEvent(finish=FinishReason.ERROR, error=EngineError("NaN"), choice=1)

    with pytest.raises(EngineError, match="NaN"):
        await whole((*TWO[:5], failed), 2)
    *_, error = await streamed((*TWO[:5], failed), 2)
    assert "NaN" in error["error"]["message"]


async def test_logprobs_have_bytes_and_a_number_even_where_they_have_none() -> None:
    events = (ReplyEvent(text="x", logprobs=(EURO, NEVER)), ending())
    content = [
        {
            "token": "\ufffd",
            "logprob": -0.25,
            "bytes": [0xE2, 0x82],
            "top_logprobs": [
                {"token": "\ufffd", "logprob": -0.25, "bytes": [0xE2, 0x82]},
                {"token": "x", "logprob": -1.5, "bytes": [120]},
            ],
        },
        {"token": "y", "logprob": -9999.0, "bytes": [121], "top_logprobs": []},
    ]
    told = {"content": content, "refusal": None}

    assert (await whole(events))["choices"][0]["logprobs"] == told
    began, text, last = [chunk["choices"][0] for chunk in await streamed(events)]
    assert text["logprobs"] == told
    assert began["logprobs"] is last["logprobs"] is None


async def test_logprobs_of_the_last_token_come_with_the_last_chunk() -> None:
    events = (ReplyEvent(text="x"), replace(ending(), logprobs=(NEVER,)))

    *_, last = await streamed(events)

    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["logprobs"]["content"][0]["bytes"] == [121]


async def test_guessed_tokens_are_told_where_some_were() -> None:
    drafted = Timings(10, 4, 3, 0.5, 0.25, drafted_tokens=6, accepted_tokens=2)
    events = (ReplyEvent(text="x"), replace(ending(), timings=drafted))

    timings = (await whole(events))["timings"]

    assert (timings["draft_n"], timings["draft_n_accepted"]) == (6, 2)
    assert "draft_n" not in (await whole((ReplyEvent(text="x"), ending())))["timings"]


async def test_logprobs_of_a_thought_are_not_the_contents() -> None:
    events = (
        ReplyEvent(reasoning="hm", logprobs=(EURO,)),
        ReplyEvent(text="x", logprobs=(NEVER,)),
        ending(),
    )

    told = (await whole(events))["choices"][0]["logprobs"]["content"]
    _, thought, text, last = await streamed(events)
    assert [each["bytes"] for each in told] == [[121]]
    assert thought["choices"][0]["delta"] == {"reasoning_content": "hm"}
    assert [each["choices"][0]["logprobs"] is None for each in (thought, text, last)] == [
        True,
        False,
        True,
    ]
