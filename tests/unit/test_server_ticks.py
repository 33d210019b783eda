"""Events of an answer, and a word where there are none for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from localrun.chat.messages import ReplyEvent
from localrun.errors import EngineCrashedError
from localrun.server.ticks import Silence, ticking

LONG_S = 3600.0


async def events(count: int) -> AsyncIterator[ReplyEvent]:
    for number in range(count):
        yield ReplyEvent(text=str(number))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
async def test_all_events_come_in_their_order(count: int) -> None:
    came = [event async for event in ticking(events(count), LONG_S)]

    assert [event.text for event in came if event is not None] == [str(n) for n in range(count)]


async def test_silence_is_told_until_an_event_ends_it() -> None:
    spoken = asyncio.Event()

    async def late() -> AsyncIterator[ReplyEvent]:
        await spoken.wait()
        yield ReplyEvent(text="x")

    told: list[ReplyEvent | None] = []
    async for event in ticking(late(), 0.0):
        told.append(event)
        if len(told) == 3:
            spoken.set()

    assert told[:3] == [None, None, None]
    assert told[-1] == ReplyEvent(text="x")


async def test_nothing_is_told_of_a_silence_that_is_the_takers_own() -> None:
    told: list[ReplyEvent | None] = []
    async for event in ticking(events(3), 0.0):
        told.append(event)
        for _ in range(10):
            await asyncio.sleep(0)

    assert told[1:] == [ReplyEvent(text="1"), ReplyEvent(text="2")]


async def test_an_error_comes_after_the_events_before_it() -> None:
    async def broken() -> AsyncIterator[ReplyEvent]:
        yield ReplyEvent(text="x")
        raise EngineCrashedError("the engine's process ended")

    ticks = ticking(broken(), LONG_S)

    assert await anext(ticks) == ReplyEvent(text="x")
    with pytest.raises(EngineCrashedError):
        await anext(ticks)


async def test_few_events_are_read_ahead_of_whoever_takes_them() -> None:
    read = 0

    async def counted() -> AsyncIterator[ReplyEvent]:
        nonlocal read
        async for event in events(1000):
            read += 1
            yield event

    async with aclosing(ticking(counted(), LONG_S)) as ticks:
        await anext(ticks)
        for _ in range(100):
            await asyncio.sleep(0)

        assert read <= 17


async def test_leaving_early_ends_what_is_read() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[ReplyEvent]:
        try:
            yield ReplyEvent(text="x")
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(ticking(endless(), LONG_S)) as ticks:
        await anext(ticks)

    assert ended.is_set()


async def test_silence_is_broken_until_it_is_stopped() -> None:
    told: list[int] = []
    thrice = asyncio.Event()

    def broken() -> None:
        told.append(len(told))
        if len(told) == 3:
            thrice.set()

    silence = Silence(0.0, broken)
    await thrice.wait()
    silence.stop()
    for _ in range(10):
        await asyncio.sleep(0)

    assert len(told) == 3


async def test_what_was_heard_puts_off_the_end_of_a_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, clock = asyncio.get_running_loop(), [0.0]
    told: list[float] = []
    timers: list[tuple[float, Callable[[], None]]] = []
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: clock[0])
        patched.setattr(loop, "call_later", lambda delay, call: timers.append((delay, call)))
        silence = Silence(10.0, lambda: told.append(clock[0]))
        clock[0] = 4.0
        silence.heard()
        for clock[0] in (10.0, 14.0, 24.0):
            timers[-1][1]()

    assert told == [14.0, 24.0]
    assert [delay for delay, _ in timers] == [10.0, 4.0, 10.0, 10.0]
