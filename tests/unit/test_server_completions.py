"""The completions API: OpenAI's older shapes, four ways to write a prompt, gaps, errors by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from localrun.chat.messages import Gap, Prompt, ReplyEvent
from localrun.engine.request import FinishReason, Grammar, TokenLogprob
from localrun.errors import (
    BusyError,
    ContextLengthError,
    EngineCrashedError,
    GrammarError,
    LocalrunError,
)
from localrun.server.app import create_app
from tests.fake_chat import INFO, FakeChat, FakeModels, ending
from tests.unit.test_server_chat import BASE, client_of, events_of

PATH = "/v1/completions"


async def ask(chat: FakeChat, **fields: Any) -> httpx2.Response:
    question = {"model": "fake", "prompt": "Say"} | fields
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        return await client.post(PATH, json=question)


async def test_an_answer_has_the_fields_of_a_completion() -> None:
    response = await ask(FakeChat())

    document = response.json()
    assert response.status_code == 200
    assert document.pop("id").startswith("cmpl-")
    assert isinstance(document.pop("created"), int)
    timings = document.pop("timings")
    assert (timings["prompt_n"], timings["cache_n"], timings["predicted_n"]) == (6, 4, 3)
    assert document == {
        "object": "text_completion",
        "model": "fake",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


async def test_a_stream_tells_texts_then_a_reason_then_done() -> None:
    response = await ask(FakeChat(), stream=True)

    *chunks, done = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert "usage" not in chunks[0]
    assert chunks[-1]["timings"]["predicted_n"] == 3


async def test_usage_comes_in_a_last_chunk_of_its_own_when_asked_for() -> None:
    response = await ask(FakeChat(), stream=True, stream_options={"include_usage": True})

    *chunks, last, done = events_of(response)
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 13


async def test_the_text_of_a_last_event_is_not_lost() -> None:
    chat = FakeChat((ReplyEvent(text="a"), replace(ending(), text="b")))

    *chunks, _ = events_of(await ask(chat, stream=True))
    whole = (await ask(chat)).json()

    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]
    assert whole["choices"][0]["text"] == "ab"


PROMPTS: dict[str, tuple[object, list[Prompt]]] = {
    "a text": ("Say", [Prompt.of("Say")]),
    "texts": (["Say", "Tell"], [Prompt.of("Say"), Prompt.of("Tell")]),
    "ids": ([1, 2], [Prompt((1, 2))]),
    "lists of ids": ([[1, 2], [3]], [Prompt((1, 2)), Prompt((3,))]),
    "a text and a list of ids": (["Say", [3]], [Prompt.of("Say"), Prompt((3,))]),
}


@pytest.mark.parametrize(("written", "meant"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_a_prompt_may_be_written_in_four_ways(written: object, meant: list[Prompt]) -> None:
    chat = FakeChat()
    response = await ask(chat, prompt=written)

    assert response.status_code == 200, response.text
    assert list(chat.completed[0][0]) == meant
    assert all(prompt.special for prompt in meant)
    assert len(response.json()["choices"]) == len(meant)


async def test_several_prompts_and_n_count_each_prompt_once() -> None:
    response = await ask(FakeChat(), prompt=["a", "b", "c"], n=2)

    document = response.json()
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3, 4, 5]
    assert document["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 18,
        "total_tokens": 48,
        "prompt_tokens_details": {"cached_tokens": 12},
    }
    assert "timings" not in document


async def test_several_answers_stream_each_with_its_index() -> None:
    response = await ask(
        FakeChat(), prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
    )

    *chunks, last, _ = events_of(response)
    for index in range(2):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == "Hello"
        assert own[-1]["finish_reason"] == "stop"
    assert last["usage"]["prompt_tokens"] == 20


async def test_options_reach_the_model_as_they_were_meant() -> None:
    chat = FakeChat()
    await ask(
        chat,
        max_tokens=5,
        stop="\n",
        temperature=0.5,
        top_k=3,
        seed=7,
        logit_bias={"12": -100},
        repeat_penalty=1.1,
        logprobs=2,
        ignore_eos=True,
        user="ada",
        guided_choice=["a", "b"],
    )

    options = chat.completed[0][1]
    assert (options.max_tokens, options.stop, options.ignore_end) == (5, ("\n",), True)
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 7)
    assert (sampling.logit_bias, sampling.repeat_penalty) == (((12, -100.0),), 1.1)
    assert sampling.logprobs == 2
    assert options.grammar == Grammar("choice", '["a", "b"]')
    assert options.context.client.endswith("ada")


async def test_without_max_tokens_there_is_no_limit() -> None:
    chat = FakeChat()
    await ask(chat)

    assert chat.completed[0][1].max_tokens is None


async def test_a_suffix_makes_a_gap_of_it() -> None:
    chat = FakeChat()
    response = await ask(chat, prompt="def f(", suffix="):\n    pass", n=2)

    assert response.status_code == 200
    assert list(chat.filled[0][0]) == [Gap("def f(", "):\n    pass")]
    assert chat.completed == []
    assert len(response.json()["choices"]) == 2


async def test_an_empty_suffix_is_none() -> None:
    chat = FakeChat(info=replace(INFO, fim=None))
    response = await ask(chat, suffix="")

    assert response.status_code == 200
    assert list(chat.completed[0][0]) == [Prompt.of("Say")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_model_that_fills_no_gap_says_which_tokens_it_lacks(stream: bool) -> None:
    chat = FakeChat(info=replace(INFO, fim=None))
    response = await ask(chat, suffix="x", stream=stream)

    error = response.json()["error"]
    assert response.status_code == 400
    assert "fill-in-the-middle tokens" in error["message"]
    assert error["param"] == "model"


async def test_an_echo_stands_before_every_answer() -> None:
    response = await ask(FakeChat(), prompt=["Say ", [104, 105, 32]], echo=True)
    *chunks, _ = events_of(await ask(FakeChat(), echo=True, stream=True))

    choices = response.json()["choices"]
    assert [choice["text"] for choice in choices] == ["Say Hello", "hi Hello"]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Say", "Hel", "lo", ""]


async def test_ids_of_an_echo_that_follow_each_other_are_asked_for_at_once() -> None:
    chat = Counting()

    response = await ask(chat, prompt=[104, 105] * 2000, echo=True)

    assert response.json()["choices"][0]["text"] == "hi" * 2000 + "Hello"
    assert chat.questions == 1


class Counting(FakeChat):
    """Counts how often it is asked what ids stand for."""

    questions = 0

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        self.questions += 1
        return await super().pieces(tokens)


async def test_an_echo_of_a_refused_prompt_is_no_answer() -> None:
    response = await ask(FakeChat(error=ContextLengthError(200, 100)), echo=True, stream=True)

    assert response.status_code == 400


def logprob(id_: int, text: bytes, value: float, *top: tuple[int, bytes, float]) -> TokenLogprob:
    return TokenLogprob(id_, text, value, top)


SAID = (
    ReplyEvent(
        text="Hi",
        logprobs=(logprob(1, b"Hi", -0.5, (1, b"Hi", -0.5), (2, b"Yo", -1.5)),),
    ),
    ReplyEvent(
        text="é!",
        logprobs=(
            logprob(3, b"\xc3", -0.25, (3, b"\xc3", -0.25), (4, b"a", -2.0)),
            logprob(5, b"\xa9", -0.125, (5, b"\xa9", -0.125), (6, b"b", -3.0)),
            logprob(7, b"!", float("-inf"), (8, b"?", -0.5), (9, b".", -1.0)),
        ),
    ),
    ending(),
)
LOGPROBS = {
    "tokens": ["Hi", "bytes:\\xc3", "bytes:\\xa9", "!"],
    "token_logprobs": [-0.5, -0.25, -0.125, -9999.0],
    "top_logprobs": [
        {"Hi": -0.5, "Yo": -1.5},
        {"bytes:\\xc3": -0.25, "a": -2.0},
        {"bytes:\\xa9": -0.125, "b": -3.0},
        {"?": -0.5, ".": -1.0, "!": -9999.0},
    ],
    "text_offset": [0, 2, 2, 3],
}


async def test_probabilities_have_the_older_shape() -> None:
    response = await ask(FakeChat(SAID), logprobs=2)

    assert response.json()["choices"][0]["logprobs"] == LOGPROBS


async def test_streamed_probabilities_join_to_the_whole() -> None:
    *chunks, _ = events_of(await ask(FakeChat(SAID), logprobs=2, stream=True))

    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert parts[-1] is None
    joined = {name: [x for part in parts if part for x in part[name]] for name in LOGPROBS}
    assert joined == LOGPROBS


async def test_an_answer_cut_by_max_tokens_says_length() -> None:
    chat = FakeChat((ReplyEvent(text="a"), ending(FinishReason.LENGTH)))

    assert (await ask(chat)).json()["choices"][0]["finish_reason"] == "length"


ERRORS: dict[str, tuple[LocalrunError, int, str | None, str | None]] = {
    "too long": (ContextLengthError(200, 100), 400, "context_length_exceeded", "prompt"),
    "busy": (BusyError("full"), 429, "queue_full", None),
    "crashed": (EngineCrashedError("gone"), 503, None, None),
}


@pytest.mark.parametrize(("error", "status", "code", "param"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_before_the_first_event_keeps_its_status(
    error: LocalrunError, status: int, code: str | None, param: str | None, stream: bool
) -> None:
    response = await ask(FakeChat(error=error), stream=stream)

    told = response.json()["error"]
    assert response.status_code == status
    assert (told["code"], told["param"]) == (code, param)


async def test_a_prompt_over_the_context_is_told_with_both_numbers() -> None:
    response = await ask(FakeChat(error=ContextLengthError(200, 100)))

    error = response.json()["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (200, 100)
    assert "200 tokens" in error["message"]


async def test_a_grammar_nobody_can_follow_is_refused_by_its_field() -> None:
    chat = FakeChat(error=GrammarError("gbnf", "no root"))
    response = await ask(chat, grammar="x")

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "grammar"


async def test_a_stream_that_fails_ends_with_an_error_and_done() -> None:
    failed = replace(ending(FinishReason.ERROR), error=EngineCrashedError("gone"))
    *_, error, done = events_of(await ask(FakeChat((ReplyEvent(text="a"), failed)), stream=True))

    assert error["error"]["message"].startswith("gone")
    assert done == "[DONE]"


async def test_a_whole_answer_that_fails_has_its_status() -> None:
    failed = replace(ending(FinishReason.ERROR), error=EngineCrashedError("gone"))

    assert (await ask(FakeChat((ReplyEvent(text="a"), failed)))).status_code == 503


async def test_an_unknown_model_is_not_found() -> None:
    response = await ask(FakeChat(), model="nobody")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


REFUSED: dict[str, tuple[Mapping[str, object], str]] = {
    "no model": ({"model": ""}, "model"),
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty text among others": ({"prompt": ["a", ""]}, "prompt"),
    "an empty list of ids": ({"prompt": [[]]}, "prompt"),
    "no prompt": ({"prompt": None}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "an object": ({"prompt": {"text": "a"}}, "prompt"),
    "a truth": ({"prompt": [True]}, "prompt"),
    "an id below": ({"prompt": [-1]}, "prompt"),
    "an id above": ({"prompt": [2**31]}, "prompt"),
    "a broken id": ({"prompt": [1, 2.5]}, "prompt"),
    "ids and texts in one list": ({"prompt": [1, "a"]}, "prompt"),
    "a list in a list in a list": ({"prompt": [[[1]]]}, "prompt"),
    "65 prompts": ({"prompt": ["a"] * 65}, "prompt"),
    "80 answers in all": ({"prompt": ["a"] * 10, "n": 8}, "n"),
    "half of a surrogate pair": ({"prompt": "a\ud800"}, ""),
    "a suffix that is a list": ({"suffix": ["a"]}, "suffix"),
    "a suffix behind ids": ({"prompt": [1], "suffix": "a"}, "suffix"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "n of 9": ({"n": 9}, "n"),
    "best of more": ({"best_of": 2}, "best_of"),
    "best of less": ({"n": 3, "best_of": 2}, "best_of"),
    "logprobs true": ({"logprobs": True}, "logprobs"),
    "6 logprobs": ({"logprobs": 6}, "logprobs"),
    "the prompt's own logprobs": ({"logprobs": 1, "echo": True}, "logprobs"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "a temperature above": ({"temperature": 2.1}, "temperature"),
    "a bias of no token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "stream a word": ({"stream": "yes"}, "stream"),
    "two forms": ({"grammar": "root ::= [a]", "json_schema": {}}, "json_schema"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_field_out_of_its_range_is_refused_by_name(
    fields: Mapping[str, object], param: str
) -> None:
    chat = FakeChat()
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        question = json.dumps({"model": "fake", "prompt": "Say"} | dict(fields))
        headers = {"content-type": "application/json"}
        response = await client.post(PATH, content=question, headers=headers)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"] or "").partition("[")[0] == param
    assert chat.completed == []
    assert chat.filled == []


async def test_openai_s_own_client_reads_it_whole_and_streamed() -> None:
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=FakeChat(SAID))))
    http = httpx2.AsyncClient(transport=transport, base_url=BASE)
    async with AsyncOpenAI(base_url=f"{BASE}/v1", api_key="x", http_client=http) as client:
        whole = await client.completions.create(model="fake", prompt="Say", logprobs=2)
        stream = await client.completions.create(model="fake", prompt="Say", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])

    assert whole.choices[0].text == text == "Hié!"
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.text_offset == [0, 2, 2, 3]
    assert whole.usage is not None
    assert whole.usage.total_tokens == 13
