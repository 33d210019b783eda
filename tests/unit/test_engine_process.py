"""An engine in a child process: streams, cancels, survives crashes, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from localrun.engine.options import EngineOptions
from localrun.engine.process import engine_process, frames
from localrun.engine.process.child import LOG_BYTES_MAX, Child, _open_log
from localrun.engine.process.engine_process import EngineProcess
from localrun.engine.process.fields import options_fields
from localrun.engine.process.mailbox import Mailbox
from localrun.engine.request import FinishReason, GenerationRequest, TokenEvent
from localrun.engine.runner import RunnerStats
from localrun.errors import (
    ContextLengthError,
    EngineCrashedError,
    EngineError,
    LocalrunError,
    UsageError,
)
from tests.engine_child import LOADER, ROOT, importable, plan, request

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")


@asynccontextmanager
async def started(
    ref: str, *, log: Path | None = None, n_ctx: int = 4096
) -> AsyncIterator[EngineProcess]:
    engine = await EngineProcess.start(
        plan(ref, n_ctx=n_ctx), loader=LOADER, chat_template="a template", log=log
    )
    try:
        yield engine
    finally:
        await engine.close()


async def collect(engine: EngineProcess, asked: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(asked)]


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


async def test_a_generation_streams_from_the_child_with_exact_counts() -> None:
    async with started("mock:echo") as engine:
        events = await collect(engine, request("héllo", id="mine"))

    last = events[-1]
    assert text_of(events) == "héllo"
    assert {event.id for event in events} == {"mine"}
    assert last.finish is FinishReason.STOP
    assert last.timings is not None
    assert last.timings.prompt_tokens == len("héllo".encode())


async def test_the_engine_says_what_it_is_with_the_template_its_parent_knows() -> None:
    async with started("mock:echo", n_ctx=77) as engine:
        info = engine.info

    assert (info.ref, info.n_ctx, info.chat_template) == ("mock:echo", 77, "a template")
    assert (info.bos, info.eos, info.add_bos) == ("<|bos|>", "<|end|>", True)


async def test_tokenizing_and_counters_come_from_the_child() -> None:
    async with started("mock:echo") as engine:
        assert await engine.tokenize("ab<|end|>", add_special=True) == [256, 97, 98, 257]
        await collect(engine, request("abc"))
        assert (await engine.stats()).tokens > 0


async def told_at_the_end(ref: str, *asked: str) -> list[int]:
    """Tokens that an engine counted, as it was told when it was closed, twice."""
    tokens: list[int] = []

    async def closing(stats: RunnerStats) -> None:
        tokens.append(stats.tokens)

    engine = await EngineProcess.start(
        plan(ref), loader=LOADER, chat_template=None, closing=closing
    )
    try:
        for prompt in asked:
            await collect(engine, request(prompt))
    except EngineCrashedError:
        pass
    finally:
        await engine.close()
        await engine.close()
    assert engine.pid is None
    return tokens


async def test_the_last_counters_are_told_once_before_the_end() -> None:
    # Of "ab" both, and of the answer all but its last.
    assert await told_at_the_end("mock:echo", "ab", "cd") == [2 * (2 + 2)]


async def test_a_child_that_has_crashed_is_not_started_again_to_tell_its_counters() -> None:
    assert await told_at_the_end("mock:crash", "ab") == []


async def test_a_child_that_does_not_answer_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_process, "LAST_WORDS_S", 0.05)

    async def never(child: Child, kind: str, **what: object) -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr(Child, "ask", never)
    assert await told_at_the_end("mock:echo") == []


async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers() -> None:
    async with started("mock:echo", n_ctx=8) as engine:
        with pytest.raises(ContextLengthError) as caught:
            await collect(engine, request("x" * 9))
        assert (caught.value.prompt_tokens, caught.value.n_ctx) == (9, 8)
        assert text_of(await collect(engine, request("ok"))) == "ok"


async def test_closing_the_iterator_cancels_the_generation_in_the_child() -> None:
    async with started("mock:script:" + "x" * 100_000, n_ctx=200_000) as engine:
        async with aclosing(engine.generate(request())) as stream:
            async for event in stream:
                if event.text:
                    break
        # One request runs at a time: this one is served when the first has ended.
        assert text_of(await collect(engine, request(max_tokens=3))) == "xxx"
        assert (await engine.stats()).tokens < 50_000


async def test_many_requests_at_once_get_each_their_own_answer() -> None:
    async with started("mock:echo") as engine:
        prompts = [f"prompt {n}" for n in range(20)]
        answers = await asyncio.gather(*(collect(engine, request(p, id=p)) for p in prompts))

    assert [text_of(events) for events in answers] == prompts


async def test_a_reader_that_sleeps_holds_up_nobody_and_misses_nothing() -> None:
    long = "abcdefgh" * 250
    async with started("mock:echo") as engine, aclosing(engine.generate(request(long))) as slow:
        first = await anext(slow)
        assert text_of(await collect(engine, request("quick"))) == "quick"
        rest = [event async for event in slow]

    assert text_of([first, *rest]) == long
    # What arrived meanwhile has melted into few events; how few is a matter of the two's timing.
    assert len(rest) < len(long) / 4
    assert rest[-1].finish is FinishReason.STOP


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_crash_under_a_request_is_named_and_the_next_request_is_served(
    number: signal.Signals,
) -> None:
    async with started("mock:script:" + "x" * 3000) as engine:
        stream = engine.generate(request())
        await anext(stream)
        before = engine.pid
        assert before is not None
        os.kill(before, number)
        with pytest.raises(EngineCrashedError, match=number.name):
            await _exhaust(stream)

        assert text_of(await collect(engine, request(max_tokens=2))) == "xx"
        assert engine.pid not in (None, before)


async def _exhaust(stream: AsyncIterator[TokenEvent]) -> None:
    async for _ in stream:
        pass


async def test_a_crash_fails_every_request_and_question_under_way() -> None:
    async with started("mock:hold") as engine:
        running = [asyncio.ensure_future(collect(engine, request(id=str(n)))) for n in range(3)]
        await engine.tokenize("x")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.gather(*running, return_exceptions=True)

    assert [type(result) for result in results] == [EngineCrashedError] * 3


async def test_a_child_that_died_idle_is_replaced_for_the_next_request() -> None:
    async with started("mock:echo") as engine:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(engine.pid)], timeout=10)

        assert await _eventually_served(engine) == "hello"


async def _eventually_served(engine: EngineProcess) -> str:
    """The request may still meet the end of the dead child: then it says so, once."""
    try:
        return text_of(await collect(engine, request()))
    except EngineCrashedError:
        return text_of(await collect(engine, request()))


async def test_after_three_crashes_in_a_row_a_restart_waits_and_says_how_long() -> None:
    now = 0.0
    engine = EngineProcess(plan("mock:crash"), loader=LOADER, chat_template=None, clock=lambda: now)
    for _ in range(3):
        with pytest.raises(EngineCrashedError, match="SIGKILL"):
            await collect(engine, request())
    with pytest.raises(EngineCrashedError, match="3 times in a row") as caught:
        await collect(engine, request())
    assert "1 s" in caught.value.hint
    now = 1.0
    with pytest.raises(EngineCrashedError, match="SIGKILL"):
        await collect(engine, request())
    now = 2.0
    with pytest.raises(EngineCrashedError, match="4 times in a row"):
        await collect(engine, request())

    await engine.close()


async def test_an_error_of_the_loader_arrives_as_itself() -> None:
    with pytest.raises(EngineError, match="no runner is called 'mock:nonsense'"):
        await EngineProcess.start(plan("mock:nonsense"), loader=LOADER, chat_template=None)


LOADERS = {
    "not an import string": "os.system",
    "no such module": "localrun.backends.nothing:load",
    "no such function": "tests.mock_runner:nothing",
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS.keys())
async def test_a_loader_that_is_none_is_refused_by_name(loader: str) -> None:
    with pytest.raises(UsageError, match=r"loader '[\w.:]+'"):
        await EngineProcess.start(plan("mock:echo"), loader=loader, chat_template=None)


async def test_a_crash_while_loading_is_told_with_the_log_that_holds_its_last_words(
    tmp_path: Path,
) -> None:
    log = tmp_path / "engine.log"
    with pytest.raises(EngineCrashedError, match=r"while loading .*SIGABRT") as caught:
        await EngineProcess.start(
            plan("any"), loader="tests.engine_child:abort", chat_template=None, log=log
        )
    assert str(log) in caught.value.hint
    assert "last words" in log.read_text()


async def test_a_log_that_cannot_be_written_keeps_no_engine_from_starting(tmp_path: Path) -> None:
    taken = tmp_path / "state"
    taken.write_text("no directory")

    engine = await EngineProcess.start(
        plan("mock:echo"), loader=LOADER, chat_template=None, log=taken / "engine.log"
    )
    try:
        assert await engine.tokenize("x")
    finally:
        await engine.close()


async def test_a_load_that_takes_too_long_is_ended() -> None:
    with pytest.raises(EngineError, match=r"not loaded within 0\.05 s"):
        await EngineProcess.start(
            plan("any"),
            loader="tests.engine_child:never",
            chat_template=None,
            load_timeout_s=0.05,
        )


def test_a_child_that_loads_ends_when_its_parent_is_gone() -> None:
    """A load that hangs in native code reads no frames and hears no goodbye."""
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, "-P", "-m", "localrun.cli.worker", str(there.fileno())]
        child = subprocess.Popen(command, pass_fds=[there.fileno()])
        there.close()
        first = {"type": "load", "call": 1, "plan": plan("any").to_json()}
        options = options_fields(EngineOptions())
        loader = "tests.engine_child:never"
        here.sendall(frames.pack(first | {"loader": loader, "options": options}))
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
    try:
        assert child.wait(timeout=30) == 1
    finally:
        child.kill()
        child.wait()


async def test_after_close_nothing_is_left_and_requests_are_refused(home: Path) -> None:
    fds = psutil.Process().num_fds()
    engine = await EngineProcess.start(plan("mock:echo"), loader=LOADER, chat_template=None)
    pid = engine.pid
    running = asyncio.ensure_future(collect(engine, request("x" * 2000)))
    await engine.tokenize("x")
    await engine.close()
    await engine.close()

    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert psutil.Process().num_fds() == fds
    with pytest.raises(LocalrunError):
        await running
    with pytest.raises(EngineError, match="closed"):
        await collect(engine, request())


async def test_a_child_that_ignores_the_goodbye_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localrun.engine.process.child.PATIENCE_S", 0.1)
    async with started("mock:echo") as engine:
        assert engine.pid is not None
        child = psutil.Process(engine.pid)
        child.suspend()

    assert not child.is_running()


async def test_secrets_of_the_environment_do_not_reach_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    async with started("mock:echo") as engine:
        assert engine.pid is not None
        assert "HF_TOKEN" not in psutil.Process(engine.pid).environ()


async def test_an_interrupt_of_the_terminal_does_not_end_the_child() -> None:
    async with started("mock:echo") as engine:
        assert engine.pid is not None
        assert os.getsid(engine.pid) != os.getsid(0)
        os.kill(engine.pid, signal.SIGINT)
        assert text_of(await collect(engine, request())) == "hello"


PARENT = """
import asyncio, sys
from localrun.engine.options import EngineOptions
from localrun.engine.process.engine_process import EngineProcess
from tests.engine_child import LOADER, plan, request

async def main():
    engine = await EngineProcess.start(plan("mock:hold"), loader=LOADER, chat_template=None)
    stream = engine.generate(request())
    running = asyncio.ensure_future(anext(stream))
    await engine.tokenize("x")
    print(engine.pid, flush=True)
    await running

asyncio.run(main())
"""


def test_a_parent_that_is_killed_leaves_no_orphan() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()

    gone, alive = psutil.wait_procs([child], timeout=10)
    assert (gone, alive) == ([child], [])


async def test_a_frame_that_no_engine_sends_ends_the_child_and_its_requests() -> None:
    async with started("mock:hold") as engine:
        child = engine._child
        assert isinstance(child, Child)
        running = asyncio.ensure_future(collect(engine, request()))
        await engine.tokenize("x")
        child._channel.get_buffer(4)[:4] = b"\xff\xff\xff\xff"
        child._channel.buffer_updated(4)
        with pytest.raises(EngineCrashedError, match="announces 4294967295 bytes"):
            await running


async def test_a_mailbox_waits_again_once_its_progress_is_taken() -> None:
    mailbox = Mailbox("r")
    mailbox.put(TokenEvent("r", prefilled=2))
    assert await mailbox.take() == TokenEvent("r", prefilled=2)
    waiting = asyncio.ensure_future(mailbox.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.put(TokenEvent("r", "a", (1,), finish=FinishReason.STOP))

    assert await waiting == TokenEvent("r", "a", (1,), finish=FinishReason.STOP)


async def test_a_mailbox_gives_what_came_meanwhile_as_one_event_and_then_the_error() -> None:
    mailbox = Mailbox("r")
    mailbox.put(TokenEvent("r", prefilled=2))
    mailbox.put(TokenEvent("r", prefilled=3))
    mailbox.put(TokenEvent("r", "a", (1,)))
    mailbox.put(TokenEvent("r", "b", (2, 3)))
    mailbox.fail(EngineCrashedError("gone"))

    assert await mailbox.take() == TokenEvent("r", prefilled=3)
    assert await mailbox.take() == TokenEvent("r", "ab", (1, 2, 3))
    with pytest.raises(EngineCrashedError):
        await mailbox.take()


def test_the_log_is_private_and_begun_anew_once_it_is_long(tmp_path: Path) -> None:
    log = tmp_path / "state" / "engine.log"
    with _open_log(log) as file:
        file.write(b"x" * (LOG_BYTES_MAX + 1))
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700

    with _open_log(log) as file:
        file.write(b"new")

    assert log.read_bytes() == b"new"
    with _open_log(log) as file:
        file.write(b"er")
    assert log.read_bytes() == b"newer"


def test_a_link_planted_at_the_log_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "engine.log").symlink_to(victim)

    with pytest.raises(OSError, match="symbolic links"):
        _open_log(tmp_path / "engine.log")

    assert victim.read_text() == "mine"
