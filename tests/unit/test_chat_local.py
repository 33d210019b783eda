"""An engine as something to talk to: render, tokenize, generate, split."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import Message, Prompt, ReplyEvent, ReplyOptions, RequestContext
from localrun.chat.templates import Renderer
from localrun.engine.client import EngineInfo
from localrun.engine.request import (
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    Timings,
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

TIMINGS = Timings(5, 0, 2, 0.1, 0.2)
HELLO = [Message("user", "hello")]
THINKING = "{# <think> #}{{ messages[0].content }}"


@dataclass
class ScriptedClient:
    """An engine that answers with a script and remembers what it was asked."""

    chunks: list[str]
    template: str | None = None
    bos: str = "<s>"
    add_bos: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)
    tokenized: list[tuple[str, bool, bool]] = field(default_factory=list)
    error: Exception | None = None
    events: list[TokenEvent] = field(default_factory=list)
    fails_at: int | None = None
    last: TokenEvent | None = None
    cancellations: int = 0
    closed: bool = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "smollm2", "mock", "llama", 64, self.bos, "</s>", self.add_bos, self.template
        )

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        self.tokenized.append((text, add_special, parse_special))
        return list(range(len(text)))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        self.requests.append(request)
        at = len(self.requests) - 1
        if self.error:
            raise self.error
        for event in self.events:
            yield event
        if self.events:
            return
        try:
            yield TokenEvent(request.id, prefilled=3)
            for chunk in self.chunks:
                if at == self.fails_at:
                    raise EngineCrashedError("SIGSEGV")
                await asyncio.sleep(0)
                yield TokenEvent(request.id, text=chunk)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancellations += 1
            raise
        yield self.last or TokenEvent(request.id, finish=FinishReason.STOP, timings=TIMINGS)

    async def close(self) -> None:
        self.closed = True


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


@dataclass
class EmbeddingClient(ScriptedClient):
    """An encoder whose tokens are characters; ``embedded`` are the texts it was asked for."""

    embedded: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, generates=False, longest_token=1, add_bos=False)

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        self.embedded += request.texts
        return [[1.0] for _ in request.texts]


async def test_a_text_that_is_too_long_to_embed_is_cut_where_that_is_asked_for(
    renderer: Renderer,
) -> None:
    client = EmbeddingClient([])
    model = LocalChatModel(client, renderer)
    texts = [Prompt.of("short"), Prompt.of("x" * 100_000)]

    embedded = await model.embed(texts, truncate=True)
    with pytest.raises(ContextLengthError):
        await model.embed(texts)

    assert [len(text) for text in client.embedded] == [5, 64]
    assert embedded.tokens == 69
    assert max(len(text) for text, _, _ in client.tokenized) == 64


async def test_more_ids_than_the_context_holds_are_refused_before_the_engine_is_asked(
    renderer: Renderer,
) -> None:
    client = EmbeddingClient([])
    model = LocalChatModel(client, renderer)

    with pytest.raises(ContextLengthError, match="65"):
        await model.embed([Prompt((7,) * 65)])
    await model.embed([Prompt((7,) * 64)])

    assert [len(text) for text in client.embedded] == [64]
