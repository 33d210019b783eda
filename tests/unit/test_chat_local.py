"""An engine as something to talk to: render, tokenize, generate, split."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, RequestContext
from localrun.chat.templates import Renderer
from localrun.engine.request import (
    FinishReason,
    Grammar,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from localrun.errors import (
    ContextLengthError,
    EngineCrashedError,
    EngineError,
    RequestError,
    TemplateError,
)
from tests.scripted_client import TIMINGS, ScriptedClient

HELLO = [Message("user", "hello")]
THINKING = "{# <think> #}{{ messages[0].content }}"


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


async def replies(model: LocalChatModel, options: ReplyOptions | None = None) -> list[ReplyEvent]:
    return [event async for event in model.reply(HELLO, options or ReplyOptions())]


async def test_an_answer_streams_progress_reasoning_text_and_one_end(renderer: Renderer) -> None:
    client = ScriptedClient(["<th", "ink>hm</thi", "nk>yes"], template=THINKING)

    events = await replies(LocalChatModel(client, renderer))

    assert events == [
        ReplyEvent(prefilled=3, prompt_tokens=5),
        ReplyEvent(reasoning="hm"),
        ReplyEvent(text="yes"),
        ReplyEvent(prompt_tokens=5, finish=FinishReason.STOP, timings=TIMINGS),
    ]


async def test_what_was_held_back_comes_before_the_end(renderer: Renderer) -> None:
    client = ScriptedClient(["<think>hm</thi"], template=THINKING)

    *_, held, last = await replies(LocalChatModel(client, renderer))

    assert held == ReplyEvent(reasoning="</thi")
    assert last.finish is FinishReason.STOP


async def test_options_reach_the_engine_under_a_fresh_id(renderer: Renderer) -> None:
    client = ScriptedClient(["x"], template="{{ tools[0].name }}")
    options = ReplyOptions(
        sampling=SamplingParams(seed=7),
        max_tokens=9,
        stop=("\n",),
        ignore_end=True,
        tools=({"name": "f"},),
        grammar=Grammar("regex", "a+"),
        context=RequestContext("owner", "client", "interactive"),
    )
    model = LocalChatModel(client, renderer)

    await replies(model, options)
    await replies(model, options)

    first, second = client.requests
    assert (first.sampling, first.max_tokens, first.stop) == (options.sampling, 9, ("\n",))
    assert first.ignore_end
    assert first.grammar == options.grammar
    assert (first.owner, first.client, first.priority) == ("owner", "client", "interactive")
    assert uuid.UUID(first.id).version == 4
    assert first.id != second.id
    assert client.tokenized[0][0] == "f"


async def test_a_model_without_a_template_may_spell_out_the_end_of_a_turn(
    renderer: Renderer,
) -> None:
    client = ScriptedClient(["x"])

    await replies(LocalChatModel(client, renderer), ReplyOptions(stop=("\n",)))

    assert client.requests[0].stop == ("\n", "<|im_end|>")
    assert client.tokenized[0][0].count("<|im_end|>") == len(HELLO)


@pytest.mark.parametrize(
    ("template", "bos", "add_bos", "added"),
    [
        ("{{ bos_token }}hi", "<s>", True, False),
        ("hi", "<s>", True, True),
        ("hi", "<s>", False, False),
        ("{{ bos_token }}hi", "<s>", False, False),
        ("hi", "", True, True),
    ],
    ids=["the template writes it", "the tokenizer adds it", "no model wants it",
         "only the template wants it", "it has no text"],
)  # fmt: skip
async def test_the_first_token_is_written_once(
    renderer: Renderer, template: str, bos: str, add_bos: bool, added: bool
) -> None:
    client = ScriptedClient([], template=template, bos=bos, add_bos=add_bos)

    await replies(LocalChatModel(client, renderer))

    assert [(add, parse) for _, add, parse in client.tokenized] == [(added, True)]


async def test_an_answer_under_a_grammar_is_text_even_where_the_prompt_began_a_thought(
    renderer: Renderer,
) -> None:
    client = ScriptedClient(["{}"], template="{{ messages[0].content }}<think>")
    options = ReplyOptions(grammar=Grammar("json_schema", "{}"))

    free = await replies(LocalChatModel(client, renderer))
    held = await replies(LocalChatModel(client, renderer), options)

    assert [event.reasoning for event in free if event.reasoning] == ["{}"]
    assert [event.text for event in held if event.text] == ["{}"]


def logprob(text: str) -> TokenLogprob:
    return TokenLogprob(ord(text[0]), text.encode(), -0.5, ((1, b"a", -0.5), (2, b"b", -1.5)))


async def test_every_tokens_logprob_comes_once_and_in_order(renderer: Renderer) -> None:
    client = ScriptedClient([], template=THINKING)
    probed = [logprob(text) for text in ("<", "t", "y", "e", "s")]
    client.events = [
        TokenEvent("r", logprobs=(probed[0],)),  # held back: it may become a mark
        TokenEvent("r", text="<t", logprobs=(probed[1],)),
        TokenEvent("r", text="y", logprobs=(probed[2], probed[3])),
        TokenEvent("r", finish=FinishReason.STOP, timings=TIMINGS, logprobs=(probed[4],)),
    ]

    events = await replies(LocalChatModel(client, renderer))

    assert [each for event in events for each in event.logprobs] == probed
    assert [(event.text, len(event.logprobs)) for event in events] == [("<ty", 4), ("", 1)]


# Tokens as an engine tells them, event by event, and what of them is told with which text.
LOGPROBS: dict[str, tuple[list[list[str]], list[tuple[str, str, list[str]]]]] = {
    "one by one": (
        [["<think>"], ["h"], ["m"], ["</think>"], ["\n\n"], ["Hi"], ["!"]],
        [
            ("h", "", ["<think>", "h"]),
            ("m", "", ["m"]),
            ("", "Hi", ["Hi"]),
            ("", "!", ["!"]),
        ],
    ),
    "all in one": (
        [["<think>", "hm", "</think>", "\n\n", "Hi", "!"]],
        [("hm", "", ["<think>", "hm", "</think>", "\n\n"]), ("", "Hi!", ["Hi", "!"])],
    ),
    "a text that is only part of its token": (
        [["<think>", "hm"], ["</think>", "\nHi"]],
        [("hm", "", ["<think>", "hm"]), ("", "Hi", ["\nHi"])],
    ),
    "a thought alone": (
        [["<think>", "hm"], [" "]],
        [("hm", "", ["<think>", "hm"])],
    ),
    "no thought": ([["H"], ["i"]], [("", "H", ["H"]), ("", "i", ["i"])]),
}


@pytest.mark.parametrize(("tokens", "told"), LOGPROBS.values(), ids=LOGPROBS.keys())
async def test_logprobs_of_thoughts_and_marks_are_none_of_the_texts(
    tokens: list[list[str]], told: list[tuple[str, str, list[str]]], renderer: Renderer
) -> None:
    client = ScriptedClient([], template=THINKING)
    client.events = [
        TokenEvent("r", text="".join(each), logprobs=tuple(map(logprob, each))) for each in tokens
    ]
    client.events.append(TokenEvent("r", finish=FinishReason.STOP, timings=TIMINGS))

    *events, last = await replies(LocalChatModel(client, renderer))

    assert [
        (event.reasoning, event.text, [each.text.decode() for each in event.logprobs])
        for event in events
    ] == told
    assert last.logprobs == ()


async def test_several_answers_share_one_rendered_prompt_and_count_up_the_seed(
    renderer: Renderer,
) -> None:
    client = ScriptedClient(["a", "b"])
    options = ReplyOptions(sampling=SamplingParams(seed=7))

    events = [event async for event in LocalChatModel(client, renderer).replies(HELLO, options, 3)]

    assert [request.sampling.seed for request in client.requests] == [7, 8, 9]
    assert len({request.id for request in client.requests}) == 3
    assert len({request.prompt for request in client.requests}) == 1
    assert len(client.tokenized) == 1
    for choice in range(3):
        own = [event for event in events if event.choice == choice]
        assert "".join(event.text for event in own) == "ab"
        assert [event.finish for event in own if event.finish] == [FinishReason.STOP]
        assert own[-1].finish is FinishReason.STOP


async def test_leaving_several_answers_early_cancels_each(renderer: Renderer) -> None:
    client = ScriptedClient(["a"] * 100)
    stream = LocalChatModel(client, renderer).replies(HELLO, ReplyOptions(), 3)

    async for event in stream:
        if event.text:
            break
    await stream.aclose()

    assert client.cancellations == 3


async def test_the_first_answer_that_fails_ends_the_others(renderer: Renderer) -> None:
    client = ScriptedClient(["a"] * 100)
    client.fails_at = 2

    with pytest.raises(EngineCrashedError):
        async for _ in LocalChatModel(client, renderer).replies(HELLO, ReplyOptions(), 3):
            pass

    assert client.cancellations == 2


async def test_a_thousand_answers_are_refused_before_one_is_made(renderer: Renderer) -> None:
    client = ScriptedClient(["a"])

    with pytest.raises(RequestError, match="n 1000"):
        await anext(LocalChatModel(client, renderer).replies(HELLO, ReplyOptions(), 1000))

    assert client.requests == []


async def test_leaving_early_cancels_the_generation(renderer: Renderer) -> None:
    client = ScriptedClient(["a", "b"])
    stream = LocalChatModel(client, renderer).reply(HELLO, ReplyOptions())

    await anext(stream)
    await stream.aclose()

    assert client.cancellations == 1


async def test_an_engines_error_is_the_last_event(renderer: Renderer) -> None:
    error = EngineError("the device is gone")
    last = TokenEvent("", finish=FinishReason.ERROR, error=error)
    client = ScriptedClient(["a"], template=THINKING, last=last)

    events = await replies(LocalChatModel(client, renderer))

    assert events[-1] == ReplyEvent(prompt_tokens=5, finish=FinishReason.ERROR, error=error)


@pytest.mark.parametrize(
    ("client", "error"),
    [
        (ScriptedClient([], error=ContextLengthError(99, 64)), ContextLengthError),
        (ScriptedClient([], template="{{ raise_exception('no') }}"), TemplateError),
    ],
    ids=["the prompt is too long", "the template refuses"],
)
async def test_refusals_reach_the_caller(
    renderer: Renderer, client: ScriptedClient, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await replies(LocalChatModel(client, renderer))


async def test_closing_closes_engine_and_renderer(renderer: Renderer) -> None:
    client = ScriptedClient([])
    model = LocalChatModel(client, renderer)

    await model.close()

    assert client.closed
    assert (model.name, model.backend, model.n_ctx) == ("smollm2", "mock", 64)
    with pytest.raises(TemplateError):
        renderer.render(None, HELLO, bos="", eos="")
