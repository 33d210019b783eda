"""Knows no weights: the in-process engine as an async client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from localrun.engine.client import EngineClient, EngineInfo
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.local import LocalEngineClient
from localrun.engine.request import (
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
)
from localrun.errors import ContextLengthError, EngineError, RequestError
from tests.mock_runner import CHAT_TEMPLATE, CONTROL, MockRunner, encode

INFO = EngineInfo(
    ref="mock:echo",
    backend="mock",
    architecture="mock",
    n_ctx=64,
    bos=CONTROL[256],
    eos=CONTROL[257],
    add_bos=True,
    chat_template=CHAT_TEMPLATE,
)


def ask(prompt: str = "hi") -> GenerationRequest:
    return GenerationRequest("a", tuple(encode(prompt)), SamplingParams(temperature=0))


@pytest.fixture
def runner() -> MockRunner:
    return MockRunner("answer", n_ctx=64)


@pytest.fixture
async def client(runner: MockRunner) -> AsyncIterator[EngineClient]:
    local = LocalEngineClient(Engine(runner), INFO)
    yield local
    runner.release()
    await local.close()
    assert runner.closed
    assert runner.violations == []
    assert "engine" not in {thread.name for thread in threading.enumerate()}


async def test_a_stream_ends_with_one_last_event(client: EngineClient) -> None:
    events = [event async for event in client.generate(ask())]

    assert "".join(event.text for event in events) == "answer"
    assert [event.finish for event in events if event.finish] == [FinishReason.STOP]
    assert events[-1].finish is FinishReason.STOP


async def test_streams_of_one_loop_are_each_others_own(client: EngineClient) -> None:
    async def text() -> str:
        return "".join([event.text async for event in client.generate(ask())])

    assert await asyncio.gather(*(text() for _ in range(5))) == ["answer"] * 5


async def test_the_loop_is_free_while_the_engine_computes(
    client: EngineClient, runner: MockRunner
) -> None:
    runner.hold(1)
    stream = client.generate(ask())
    first = await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.to_thread(runner.entered.wait)

    assert first.prefilled == 2
    assert await client.tokenize("ab") == [97, 98]
    runner.release()
    assert (await waiting).text == "a"
    await stream.aclose()


async def test_closing_the_stream_cancels_the_generation(
    client: EngineClient, runner: MockRunner
) -> None:
    runner.hold(2)
    stream = client.generate(ask())
    async for event in stream:
        if event.text:
            break
    await asyncio.to_thread(runner.entered.wait)
    await stream.aclose()
    events = [event async for event in client.generate(ask("again"))]

    assert runner.aborts >= 1
    assert "".join(event.text for event in events) == "answer"


async def test_cancelling_the_reading_task_cancels_the_generation(
    client: EngineClient, runner: MockRunner
) -> None:
    runner.hold(0)

    async def read() -> None:
        async for _ in client.generate(ask()):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    await asyncio.to_thread(runner.entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events = [event async for event in client.generate(ask())]

    assert events[-1].finish is FinishReason.STOP


async def test_a_prompt_too_long_is_refused_at_the_first_step(client: EngineClient) -> None:
    with pytest.raises(ContextLengthError):
        await anext(client.generate(ask("p" * 64)))


async def test_it_tells_its_info_and_counters(client: EngineClient) -> None:
    assert client.info == INFO
    async for _ in client.generate(ask("12")):
        pass
    assert (await client.stats()).tokens == 2 + len("answer")


async def test_closing_ends_a_stream_that_is_being_read(runner: MockRunner) -> None:
    runner.hold(1)
    local = LocalEngineClient(Engine(runner), INFO)
    stream = local.generate(ask())
    await anext(stream)
    await local.close()
    events = [event async for event in stream]

    assert events[-1].finish is FinishReason.CANCELLED
    with pytest.raises(EngineError, match="closed"):
        await local.tokenize("text")


class SlowToTake:
    """An engine whose ``submit`` blocks until it is let go, as it does while a grammar compiles."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.entered, self.go = threading.Event(), threading.Event()
        self.taken: list[Generation] = []

    def submit(
        self, request: GenerationRequest, *, on_ready: Callable[[], None] | None = None
    ) -> Generation:
        if request.grammar is not None:
            self.entered.set()
            self.go.wait()
        generation = self.engine.submit(replace(request, grammar=None), on_ready=on_ready)
        self.taken.append(generation)
        return generation


async def test_the_loop_is_free_while_a_grammar_is_compiled(
    client: LocalEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowToTake(client._engine)
    constrained = replace(ask(), grammar=Grammar("regex", "a+"))
    with monkeypatch.context() as patched:
        patched.setattr(client, "_engine", slow)
        waiting = asyncio.ensure_future(_texts(client, constrained))
        await asyncio.to_thread(slow.entered.wait)
        assert await _texts(client, ask()) == "answer"
        slow.go.set()
        assert await waiting == "answer"


async def test_who_leaves_while_a_grammar_is_compiled_leaves_no_generation_behind(
    client: LocalEngineClient, runner: MockRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowToTake(client._engine)
    with monkeypatch.context() as patched:
        patched.setattr(client, "_engine", slow)
        runner.hold(0)
        waiting = asyncio.ensure_future(
            _texts(client, replace(ask(), grammar=Grammar("regex", "a+")))
        )
        await asyncio.to_thread(slow.entered.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        slow.go.set()
        while not slow.taken:
            await asyncio.sleep(0)
    ended = await asyncio.to_thread(list, slow.taken[0])

    assert ended[-1].finish is FinishReason.CANCELLED


async def _texts(client: EngineClient, request: GenerationRequest) -> str:
    return "".join([event.text async for event in client.generate(request)])


async def test_vectors_come_from_the_engine_and_a_wrong_request_is_refused(
    client: EngineClient,
) -> None:
    request = EmbeddingRequest("e", ((4, 2), (7,)), normalize=False)

    assert await client.embed(request) == [[3.0, 0.5, 1.0, 0.0], [7.0, 0.0, 1.0, 0.0]]
    with pytest.raises(RequestError):
        await client.embed(replace(request, dimensions=0))
