"""Knows no weights: a reader that does not read holds up neither the engine nor the memory."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from localrun.engine.engine import Engine
from localrun.engine.joined import joined
from localrun.engine.process import fields, frames
from localrun.engine.process.channel import Channel
from localrun.engine.process.desk import Desk
from localrun.engine.process.engine_process import EngineProcess
from localrun.engine.process.outbox import Outbox
from localrun.engine.request import FinishReason, GenerationRequest, TokenEvent
from localrun.errors import ContextLengthError, EngineError
from tests.engine_child import LOADER, importable, plan, request
from tests.mock_runner import MockRunner

__all__ = ["importable"]


# The child's side.


def test_what_the_socket_does_not_take_is_sent_later_and_in_order() -> None:
    caught_up = threading.Event()
    here, there = socket.socketpair()
    with here, there:
        outbox = Outbox(here, caught_up.set)
        sent = [bytes([n]) * 100_000 for n in range(50)]
        for data in sent:
            outbox.send(data)
        assert outbox.behind
        with there.makefile("rb") as reader:
            assert reader.read(5_000_000) == b"".join(sent)
        caught_up.wait()

    assert not outbox.behind


def test_a_reader_that_is_gone_is_nothing_to_an_outbox() -> None:
    here, there = socket.socketpair()
    with here:
        outbox = Outbox(here, lambda: None)
        outbox.send(b"x" * 1_000_000)
        there.close()
        while outbox.behind:
            threading.Event().wait(0.001)
        outbox.send(b"x" * 1_000_000)

    assert not outbox.behind


class Served:
    """A desk in this process, and its parent's end."""

    def __init__(self, runner: MockRunner, clock: Callable[[], float]) -> None:
        self.desk = Desk(clock)
        self.parent, self._child = socket.socketpair()
        self.engine = Engine(runner, on_step=self.desk.stepped)
        self.outbox = Outbox(self._child, self.desk.deliver)
        self._incoming = self._child.makefile("rb")
        self._answers = self.parent.makefile("rb")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self.desk.serve(self._incoming, self.outbox, self.engine)

    def send(self, kind: str, call: int = 0, **what: Any) -> None:
        self.parent.sendall(frames.pack({"type": kind, "call": call, **what}))

    def submit(self, call: int, asked: GenerationRequest) -> None:
        self.send("submit", call, request=fields.request_fields(asked))

    def receive(self) -> frames.Frame:
        frame = frames.read_frame(self._answers)
        assert frame is not None
        return frame

    def stream(self, call: int) -> list[TokenEvent]:
        """The events of one call to its end; all else is passed over."""
        events: list[TokenEvent] = []
        while not (events and events[-1].finish):
            frame = self.receive()
            arrived = frame.get("events", ())
            events += [fields.event_of("r", each) for each in arrived if each[0] == call]
        return events

    def close(self) -> None:
        self.send("close")
        self._thread.join()
        self.engine.close()
        for end in (self._incoming, self._answers, self.parent, self._child):
            end.close()


@contextmanager
def served(runner: MockRunner, clock: Callable[[], float] = time.monotonic) -> Iterator[Served]:
    desk = Served(runner, clock)
    try:
        yield desk
    finally:
        runner.release()
        desk.close()


def test_texts_of_one_picture_travel_together_but_for_the_first_and_the_last() -> None:
    text = "one picture " * 16
    with served(MockRunner(text), clock=lambda: 0.0) as desk:
        desk.submit(1, request())
        events = [event.text for event in desk.stream(1) if event.text]
    with served(MockRunner(text), clock=itertools.count().__next__) as desk:
        desk.submit(1, request())
        steps = [event.text for event in desk.stream(1) if event.text]

    assert "".join(events) == "".join(steps) == text
    # How far the engine is before its first text is asked for is chance.
    assert 1 <= len(events) <= 3
    assert len(steps) > len(text) // 2


def test_the_engine_ends_a_long_answer_that_nobody_reads_and_keeps_little_of_it() -> None:
    long = "0123456789" * 600
    runner = MockRunner(long, n_ctx=50_000, max_sequences=2)
    with served(runner, clock=itertools.count().__next__) as desk:
        desk.submit(1, request("a"))
        while runner.count < len(long):
            threading.Event().wait(0.01)
        waiting = sum(len(data) for data in desk.outbox._waiting)
        assert desk.outbox.behind
        desk.send("ping")
        events = desk.stream(1)

    assert "".join(event.text for event in events) == long
    assert events[-1].finish is FinishReason.STOP
    assert waiting < 1_000
    assert len(events) < len(long)


def test_all_streams_of_a_step_come_in_one_frame() -> None:
    runner = MockRunner("abc", max_sequences=4, holds=(0,))
    with served(runner) as desk:
        for call in range(4):
            desk.submit(call, request(f"{call}"))
        while list(desk.desk._running.values()).count(None) or len(desk.desk._running) < 4:
            threading.Event().wait(0.001)
        runner.release()
        received: list[frames.Frame] = []
        while not received or "b" not in str(received[-1]):
            received.append(desk.receive())

    assert {frame["type"] for frame in received} == {"events"}
    assert {event[0] for event in received[-1]["events"]} == {0, 1, 2, 3}


def test_a_grammar_that_is_compiled_holds_up_no_cancel_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiling, go = threading.Event(), threading.Event()
    runner = MockRunner("x" * 1000, max_sequences=2)
    with served(runner) as desk:
        submit = desk.engine.submit

        def slow(asked: GenerationRequest, **options: Any) -> Any:
            if asked.id == "slow":
                compiling.set()
                go.wait()
            return submit(asked, **options)

        monkeypatch.setattr(desk.engine, "submit", slow)
        grammar = {"kind": "regex", "source": "x*"}
        held = fields.request_fields(request(id="slow"))
        desk.send("submit", 1, request=held | {"grammar": grammar})
        compiling.wait()
        desk.submit(2, request(max_tokens=2))
        assert desk.stream(2)[-1].finish is FinishReason.LENGTH
        desk.send("cancel", 1)
        desk.send("ping")
        while desk.receive()["type"] != "pong":
            pass
        go.set()
        # Both seats are free again for these.
        for call in (3, 4):
            desk.submit(call, request(max_tokens=2))
            assert desk.stream(call)[-1].finish is FinishReason.LENGTH
        assert desk.desk._running == {}


def test_what_grew_beyond_a_frame_fails_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(MockRunner("x" * 300, max_sequences=2)) as desk:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 400)
        events = [fields.event_fields(1, TokenEvent("r", "a" * 500)), [2, "b", [1]]]
        desk.desk._send_events(events)
        failed, other = desk.receive(), desk.receive()

    assert (failed["type"], failed["call"]) == ("failed", 1)
    assert "the limit is 400" in failed["error"]["message"]
    assert other == {"type": "events", "events": [[2, "b", [1]]]}


# Joining.


def _event(text: str = "", **fields: Any) -> TokenEvent:
    return TokenEvent("r", text, tuple(text.encode()), **fields)


FAILED = EngineError("why")
JOINS = {
    "none": ([], []),
    "one": ([_event("a")], [_event("a")]),
    "progress": ([_event(prefilled=1), _event(prefilled=2)], [_event(prefilled=2)]),
    "text": ([_event("a"), _event("b"), _event("c")], [_event("abc")]),
    "all": (
        [_event(prefilled=1), _event("a"), _event("b", finish=FinishReason.STOP)],
        [_event(prefilled=1), _event("ab", finish=FinishReason.STOP)],
    ),
    "an error": (
        [_event("a"), _event(finish=FinishReason.ERROR, error=FAILED)],
        [_event("a", finish=FinishReason.ERROR, error=FAILED)],
    ),
}


@pytest.mark.parametrize(("events", "fewest"), JOINS.values(), ids=JOINS.keys())
def test_events_are_joined_to_progress_and_the_rest(
    events: list[TokenEvent], fewest: list[TokenEvent]
) -> None:
    assert joined(events) == fewest


# The parent's side.


class Full:
    """A transport that can take no more after each write."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.channel.pause_writing()


async def test_large_frames_wait_their_turn_while_the_child_does_not_read() -> None:
    channel = Channel(lambda _: None, lambda _: None)
    channel._transport = transport = Full(channel)  # type: ignore[assignment]  # the part used
    sending = [asyncio.ensure_future(channel.send_in_turn({"type": str(n)})) for n in range(5)]
    for count in range(1, 6):
        while len(transport.written) < count:
            await asyncio.sleep(0)
        for _ in range(9):
            await asyncio.sleep(0)
        assert len(transport.written) == count
        channel.resume_writing()
    channel.send({"type": "cancel"})
    channel.send({"type": "cancel"})
    await asyncio.gather(*sending)

    assert len(transport.written) == 7
    channel.ended.cancel()


@pytest.mark.usefixtures("importable")
async def test_a_prompt_of_millions_is_refused_with_its_numbers_and_the_next_one_served() -> None:
    engine = await EngineProcess.start(plan("mock:echo"), loader=LOADER, chat_template=None)
    try:
        with pytest.raises(ContextLengthError) as caught:
            await anext(engine.generate(request("\5" * 4_000_000)))
        assert caught.value.prompt_tokens == 4_000_000
        with pytest.raises(EngineError, match="the limit is"):
            await engine.tokenize("x" * frames.MAX_FRAME_BYTES)
        assert await engine.tokenize("x" * 3_000_000) == [ord("x")] * 3_000_000
        events = [event async for event in engine.generate(request())]
    finally:
        await engine.close()

    assert "".join(event.text for event in events) == "hello"


@pytest.mark.usefixtures("importable")
async def test_requests_to_a_child_that_is_stopped_wait_and_are_served_when_it_goes_on() -> None:
    engine = await EngineProcess.start(
        plan("mock:echo", n_ctx=400_000), loader=LOADER, chat_template=None
    )
    try:
        assert engine.pid is not None
        child = psutil.Process(engine.pid)
        child.suspend()
        long = request("y" * 300_000, max_tokens=1)
        running = [asyncio.ensure_future(anext(engine.generate(long))) for _ in range(6)]
        for _ in range(10):
            await asyncio.sleep(0)
        transport = engine._child._channel._transport  # type: ignore[union-attr]  # it runs
        held = transport.get_write_buffer_size()
        running.pop().cancel()
        child.resume()
        events = await asyncio.gather(*running)
        assert held < 2 * len(frames.pack(fields.request_fields(long) | {"type": "submit"}))
        assert all(event.prefilled for event in events)
    finally:
        await engine.close()


@pytest.mark.usefixtures("importable")
async def test_closing_a_child_that_does_not_read_loses_no_time_to_what_it_never_got(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localrun.engine.process.child.PATIENCE_S", 0.1)
    engine = await EngineProcess.start(plan("mock:echo"), loader=LOADER, chat_template=None)
    assert engine.pid is not None
    child = psutil.Process(engine.pid)
    child.suspend()
    asking = asyncio.ensure_future(engine.tokenize("x" * 5_000_000))
    await asyncio.sleep(0)
    await engine.close()

    assert not child.is_running()
    with pytest.raises(EngineError, match="closed"):
        await asking


async def test_a_request_that_waits_for_its_turn_fails_when_the_child_ends() -> None:
    """Nobody is left to take it; the channel's end must not leave it waiting."""
    told: list[Exception | None] = []
    channel = Channel(lambda _: None, told.append)
    here, there = socket.socketpair()
    await channel.open(here)
    while channel._writable.is_set():
        channel.send({"type": "x", "text": "y" * 100_000})
    waiting = asyncio.ensure_future(channel.send_in_turn({"type": "late"}))
    await asyncio.sleep(0)
    there.close()
    await channel.ended
    await waiting

    assert told == [None]
