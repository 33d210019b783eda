"""Whatever ends or holds up the engine's process: its parent lives, says so, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from localrun.engine.process.child import LOOKS, Child
from localrun.engine.process.engine_process import EngineProcess
from localrun.engine.process.mailbox import Mailbox
from localrun.engine.request import EmbeddingRequest, FinishReason, GenerationRequest, TokenEvent
from localrun.errors import EngineCrashedError, OutOfMemoryError, RequestError
from tests.engine_child import LOADER, importable, plan, request

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

LONG = "mock:script:" + "x" * 3000
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


@asynccontextmanager
async def started(
    ref: str, *, loader: str = LOADER, **options: Any
) -> AsyncIterator[EngineProcess]:
    engine = await EngineProcess.start(plan(ref), loader=loader, chat_template=None, **options)
    try:
        yield engine
    finally:
        await engine.close()


async def collect(engine: EngineProcess, asked: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(asked)]


async def said(engine: EngineProcess, **fields: object) -> str:
    return "".join([event.text for event in await collect(engine, request(**fields))])


def pid_of(engine: EngineProcess) -> int:
    assert engine.pid is not None
    return engine.pid


async def _killed_mid_stream(engine: EngineProcess, number: signal.Signals) -> None:
    stream = engine.generate(request())
    await anext(stream)
    os.kill(pid_of(engine), number)
    with pytest.raises(EngineCrashedError, match=number.name):
        async for _ in stream:
            pass


async def _killed_idle(engine: EngineProcess, number: signal.Signals) -> None:
    child = engine._child
    assert child is not None
    os.kill(child.pid, number)
    await child._channel.ended


async def _killed_mid_load(engine: EngineProcess, number: signal.Signals) -> None:
    """The child that a crash made necessary dies while it loads, too."""
    await _killed_idle(engine, number)
    before = psutil.Process().children()
    asking = asyncio.ensure_future(said(engine))
    while not (new := [child for child in psutil.Process().children() if child not in before]):
        await asyncio.sleep(0)
    new[0].send_signal(number)
    with pytest.raises(EngineCrashedError, match=f"while loading the model .{number.name}"):
        await asking


KILLS = {"mid stream": _killed_mid_stream, "idle": _killed_idle, "mid load": _killed_mid_load}


async def _survives(rounds: int) -> None:
    """Every way to die under every signal, in turn; after each the next request is served."""
    async with started(LONG) as engine:
        for at in range(rounds):
            kill = list(KILLS.values())[at % 3]
            await kill(engine, SIGNALS[at // 3 % 3])
            assert await said(engine, max_tokens=2) == "xx"


async def test_a_parent_survives_its_child_however_and_whenever_it_dies() -> None:
    await _survives(9)


@pytest.mark.long
async def test_a_parent_survives_its_child_however_often_it_dies() -> None:
    await _survives(90)


async def _truncated_mid_stream(weights: Path) -> None:
    weights.write_bytes(b"\1" * 1_000_000)
    async with started(str(weights), loader="tests.engine_child:mapped") as engine:
        stream = engine.generate(request())
        await anext(stream)
        os.truncate(weights, 0)
        with pytest.raises(EngineCrashedError, match="SIGBUS"):
            async for _ in stream:
                pass
        weights.write_bytes(b"\1" * 1_000_000)
        assert await said(engine, max_tokens=2) == "xx"


async def _truncated_mid_load(weights: Path) -> None:
    weights.write_bytes(b"\1" * 1_000_000)
    loader = "tests.engine_child:mapping"
    loading = asyncio.ensure_future(
        EngineProcess.start(plan(str(weights)), loader=loader, chat_template=None)
    )
    begun = Path(f"{weights}.begun")
    while not begun.exists():
        await asyncio.sleep(0)
    begun.unlink()
    os.truncate(weights, 0)
    with pytest.raises(EngineCrashedError, match=r"while loading the model .SIGBUS"):
        await loading


async def test_a_file_truncated_under_its_map_ends_the_child_alone(tmp_path: Path) -> None:
    await _truncated_mid_stream(tmp_path / "weights")
    await _truncated_mid_load(tmp_path / "weights")


@pytest.mark.long
async def test_files_truncated_under_their_maps_end_children_alone(tmp_path: Path) -> None:
    for _ in range(20):
        await _truncated_mid_stream(tmp_path / "weights")
        await _truncated_mid_load(tmp_path / "weights")


@pytest.mark.parametrize("loader", ["stuck", "stuck_alone"])
async def test_an_engine_that_hangs_is_ended_with_its_requests_and_replaced(loader: str) -> None:
    async with started("x", loader=f"tests.engine_child:{loader}", hang_timeout_s=0.4) as engine:
        before = psutil.Process(pid_of(engine))
        embedding = EmbeddingRequest("e", ((1,),))
        results = await asyncio.gather(
            collect(engine, request()),
            collect(engine, request(id="2")),
            engine.embed(embedding),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [EngineCrashedError] * 3
        assert {"made no step for 0.4 s" in str(result) for result in results} == {True}
        gone, _ = await asyncio.to_thread(psutil.wait_procs, [before], 10)
        assert gone == [before]
        with pytest.raises(EngineCrashedError, match="made no step"):
            await collect(engine, request())


async def test_a_question_without_an_answer_ends_the_child() -> None:
    async with started("mock:echo", hang_timeout_s=0.4) as engine:
        before = psutil.Process(pid_of(engine))
        before.suspend()
        with pytest.raises(EngineCrashedError, match=r"did not answer to 'tokenize' for 0\.4 s"):
            await engine.tokenize("x")
        assert await said(engine) == "hello"
        gone, _ = await asyncio.to_thread(psutil.wait_procs, [before], 10)
        assert gone == [before]


class _Deaf:
    """A channel that takes everything."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, frame: Any) -> None:
        self.sent.append(frame)

    def abort(self) -> None:
        self.sent.append("abort")


class _Process:
    pid = 1
    killed = False

    def kill(self) -> None:
        self.killed = True


async def _looks(steps: list[int]) -> bool:
    """Whether a child that counts ``steps`` at the looks at it is ended."""
    process, channel = _Process(), _Deaf()
    child = Child(process, None, 1e9)  # type: ignore[arg-type]  # the part that is used
    child._channel = channel  # type: ignore[assignment]
    child._streams[1] = Mailbox("r")
    for count in steps:
        if not process.killed:
            child._deliver({"type": "pong", "steps": count})
            child._look()
    if child._next_look is not None:
        child._next_look.cancel()
    return process.killed


STEADY = [0] * LOOKS


@pytest.mark.parametrize(
    ("steps", "ended"),
    [
        (STEADY, False),
        ([*STEADY, 0], True),
        ([*STEADY, 1], False),
        ([*STEADY, *[1] * (LOOKS + 1), 2], False),
        ([*STEADY, *[1] * (LOOKS + 1), 1], True),
        (list(range(100)), False),
    ],
    ids=["in time", "never", "late", "slow", "stops", "fast"],
)
async def test_an_engine_is_ended_when_it_makes_no_step_and_never_for_being_slow(
    steps: list[int], ended: bool
) -> None:
    assert await _looks(steps) is ended


async def test_a_child_without_work_is_not_looked_after() -> None:
    async with started("mock:echo", hang_timeout_s=0.8) as engine:
        assert await said(engine) == "hello"
        child = engine._child
        assert child is not None
        while child._next_look is not None:
            await asyncio.sleep(0.01)
        assert engine.pid == child.pid


async def test_a_loader_with_an_error_of_its_own_ends_its_child_and_says_how() -> None:
    with pytest.raises(EngineCrashedError, match=r"while loading the model \(exit status 1\)"):
        await EngineProcess.start(plan("x"), loader="tests.engine_child:broken", chat_template=None)


async def test_a_load_that_gets_no_memory_is_told_as_that() -> None:
    with pytest.raises(OutOfMemoryError, match="no memory left while the model was loaded"):
        await EngineProcess.start(
            plan("x"), loader="tests.engine_child:crowded", chat_template=None
        )


@pytest.mark.parametrize("bad", ["x?", "say"], ids=["in prefill", "in decode"])
async def test_a_step_that_raises_ends_its_request_alone(bad: str) -> None:
    async with started("x", loader="tests.engine_child:batching") as engine:
        prompts = ["one", bad, "two", "three"]
        answers = await asyncio.gather(
            *(collect(engine, request(prompt, id=prompt)) for prompt in prompts)
        )
        again = await said(engine, prompt="again")

    finishes = [events[-1].finish for events in answers]
    assert finishes == [FinishReason.STOP, FinishReason.ERROR, *[FinishReason.STOP] * 2]
    assert str(answers[1][-1].error) == "mock: a token of the batch is cursed"
    texts = ["".join(event.text for event in events) for events in answers]
    assert (texts[0], *texts[2:], again) == ("one", "two", "three", "again")


async def test_an_error_of_the_embedding_arrives_as_itself_and_vectors_exactly() -> None:
    async with started("mock:echo") as engine:
        with pytest.raises(RequestError, match="0 texts"):
            await engine.embed(EmbeddingRequest("e", ()))
        vectors = await engine.embed(EmbeddingRequest("e", ((4, 2), (7,)), normalize=False))

    assert vectors == [[3.0, 0.5, 1.0, 0.0], [7.0, 0.0, 1.0, 0.0]]


async def _cycles(count: int) -> list[tuple[int, int, int]]:
    """After each load and unload: resident bytes, descriptors and threads of this process."""
    here, held = psutil.Process(), []
    before = here.children()  # a warm child of another test may be about to end
    for _ in range(count):
        async with started("mock:echo") as engine:
            assert await said(engine) == "hello"
        assert set(here.children()) <= set(before)
        held.append((here.memory_info().rss, here.num_fds(), here.num_threads()))
    return held


async def test_unloading_leaves_no_process_descriptor_or_thread() -> None:
    held = await _cycles(4)

    assert len({fds for _, fds, _ in held}) == 1
    assert held[-1][2] <= held[1][2]


@pytest.mark.long
async def test_twenty_loads_and_unloads_leave_nothing_in_the_parent() -> None:
    warm, *held = (await _cycles(24))[3:]

    assert max(rss for rss, _, _ in held) - warm[0] < 1 << 20
    assert {(fds, threads) for _, fds, threads in held} == {warm[1:]}
