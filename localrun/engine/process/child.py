"""Knows no model: one run of the engine's child process, and what is asked of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from localrun import config
from localrun.engine.client import EngineInfo
from localrun.engine.options import EngineOptions
from localrun.engine.process import fields, frames
from localrun.engine.process.channel import Channel
from localrun.engine.process.mailbox import Mailbox
from localrun.engine.request import EmbeddingRequest, GenerationRequest
from localrun.errors import EngineCrashedError, EngineError, LocalrunError
from localrun.store.disk import make_private

WORKER = "localrun.cli.worker"
# From the goodbye to SIGTERM, and from there to SIGKILL.
PATIENCE_S = 6.0
# What libraries print is for finding out why one crashed: the last runs are enough.
LOG_BYTES_MAX = 1 << 20
# How often an engine that has something to do is asked whether it goes on, in one time-out.
LOOKS = 8


class Child:
    """A process, its channel and the requests under way in it.

    Its end, by whatever cause, is the end of the channel: that fails all that is under way. An
    engine that makes no step for ``hang_timeout_s`` seconds while it has something to do is ended;
    one that is slow goes on, as its steps are counted.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path | None, hang_timeout_s: float
    ) -> None:
        self._process = process
        self._log = log
        self._hang_timeout_s = hang_timeout_s
        self._channel = Channel(self._deliver, self._lost)
        self._calls = itertools.count(1)
        self._streams: dict[int, Mailbox] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._embeddings: set[int] = set()
        self._doing = "while loading the model"
        self._verdict: EngineCrashedError | None = None
        self._reaping: asyncio.Task[int] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._steps = self._steps_seen = self._looks_in_vain = 0
        self.alive = True

    @staticmethod
    async def spawn(log: Path | None, hang_timeout_s: float) -> Child:
        """Start a process by exec, with one end of a socket pair and nothing else of ours."""
        output: BinaryIO | None = None
        if log is not None:
            try:
                output = _open_log(log)
            except OSError:
                log = None  # a disk that takes no log takes no answer away
        here, there = socket.socketpair()
        try:
            with there, output or nullcontext():
                process = _popen(there.fileno(), output)
        except OSError as error:
            here.close()
            raise EngineError(f"the engine's process cannot be started: {error}") from error
        child = Child(process, log, hang_timeout_s)
        try:
            await child._channel.open(here)
        except BaseException:
            here.close()
            process.kill()
            process.wait()
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(
        self, plan: str, loader: str, options: EngineOptions, timeout_s: float
    ) -> EngineInfo:
        """Hand over the plan and wait until the weights are loaded.

        Raises:
            LocalrunError: what the loader raised.
            EngineCrashedError: the process ended.
            EngineError: not loaded within ``timeout_s`` seconds.
        """
        what = {"plan": plan, "loader": loader, "options": fields.options_fields(options)}
        try:
            async with asyncio.timeout(timeout_s):
                info = fields.info_of(await self._ask(next(self._calls), "load", what))
        except TimeoutError as error:
            raise EngineError(f"the model was not loaded within {timeout_s:g} s") from error
        self._doing = "under this request"
        return info

    async def submit(self, request: GenerationRequest) -> tuple[int, Mailbox]:
        """Start a generation; its number, for ``forget``, and where its events arrive.

        Raises:
            RequestError, EngineError: it cannot be sent.
        """
        call, mailbox = next(self._calls), Mailbox(request.id)
        frame = {"type": "submit", "call": call, "request": fields.request_fields(request)}
        self._streams[call] = mailbox
        try:
            await self._channel.send_in_turn(frame)
        except BaseException:
            self._streams.pop(call, None)
            raise
        self._watch()
        return call, mailbox

    def forget(self, call: int) -> None:
        """The consumer is done; what still runs is cancelled. Does not wait."""
        if self._streams.pop(call, None) is not None:
            self._channel.send({"type": "cancel", "call": call})

    async def ask(self, kind: str, **what: Any) -> Any:
        """One question, one answer.

        Raises:
            LocalrunError: what the engine answered.
            EngineCrashedError: the process ended, or had to be: no answer came in time.
        """
        try:
            async with asyncio.timeout(self._hang_timeout_s):
                return await self._ask(next(self._calls), kind, what)
        except TimeoutError:
            raise self._end_hanging(f"did not answer to {kind!r}") from None

    async def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        """A vector a text. As long as the engine makes steps it may take its time.

        Raises:
            LocalrunError: what the engine answered.
            EngineCrashedError: the process ended.
        """
        call = next(self._calls)
        self._embeddings.add(call)
        try:
            self._watch()
            asked = {"request": fields.embedding_fields(request)}
            vectors = fields.vectors_of(await self._ask(call, "embed", asked))
        except asyncio.CancelledError:
            self._channel.send({"type": "cancel", "call": call})
            raise
        finally:
            self._embeddings.discard(call)
        return vectors

    async def close(self) -> None:
        """End the process: first asked, then made to. Nothing of it is left."""
        self._channel.send({"type": "close"})
        self.alive = False
        self._fail_all(EngineError("the engine was closed"))
        self._channel.close()
        await self._hang_up()

    async def kill(self) -> None:
        """End the process without asking."""
        self.alive = False
        self._process.kill()
        await self._hang_up()

    async def _ask(self, call: int, kind: str, what: frames.Frame) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[call] = answer
        try:
            await self._channel.send_in_turn({"type": kind, "call": call, **what})
            return await answer
        finally:
            self._answers.pop(call, None)

    def _deliver(self, frame: frames.Frame) -> None:
        kind = frame["type"]
        if kind == "events":
            for event in frame["events"]:
                self._deliver_event(event)
        elif kind == "answer":
            if (answer := self._answers.get(frame["call"])) and not answer.done():
                answer.set_result(frame["value"])
        elif kind == "failed":
            self._fail(frame["call"], frames.error_of(frame["error"]))
        elif kind == "pong":
            self._steps = frame["steps"]

    def _deliver_event(self, event: fields.EventFields) -> None:
        mailbox = self._streams.get(event[0])
        if mailbox is not None:
            arrived = fields.event_of(mailbox.id, event)
            mailbox.put(arrived)
            if arrived.finish is not None:
                del self._streams[event[0]]

    def _fail(self, call: int, error: LocalrunError) -> None:
        if mailbox := self._streams.pop(call, None):
            mailbox.fail(error)
        if (answer := self._answers.get(call)) and not answer.done():
            answer.set_exception(error)

    def _fail_all(self, error: LocalrunError) -> None:
        for call in [*self._streams, *self._answers]:
            self._fail(call, error)

    def _watch(self) -> None:
        """Look after the engine for as long as it has something to do."""
        if self._next_look is None and self.alive:
            self._looks_in_vain = 0
            self._look_later()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(self._hang_timeout_s / LOOKS, self._look)

    def _look(self) -> None:
        """Counted in looks, not by the clock: this process may have been stopped for long."""
        self._next_look = None
        if not self.alive or not (self._streams or self._embeddings):
            return
        self._looks_in_vain = self._looks_in_vain + 1 if self._steps == self._steps_seen else 0
        self._steps_seen = self._steps
        if self._looks_in_vain > LOOKS:
            self._end_hanging("made no step")
            return
        self._channel.send({"type": "ping"})
        self._look_later()

    def _end_hanging(self, what: str) -> EngineCrashedError:
        self._verdict = self._crash(f"{what} for {self._hang_timeout_s:g} s and was ended")
        self.alive = False
        self._process.kill()
        self._channel.abort()
        self._fail_all(self._verdict)
        return self._verdict

    def _lost(self, damage: Exception | None) -> None:
        self.alive = False
        if self._next_look is not None:
            self._next_look.cancel()
        if damage is not None:
            self._process.kill()
            self._verdict = self._crash(f"sent what it should not: {damage}")
        self._ending = asyncio.get_running_loop().create_task(self._fail_with_status())

    async def _fail_with_status(self) -> None:
        status = await self._status()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._fail_all(self._verdict or self._crash(f"ended {self._doing} ({how})"))

    async def _hang_up(self) -> None:
        await self._status()
        # What could not be sent to it any more would keep the channel open.
        self._channel.abort()
        await self._channel.ended
        if self._ending is not None:
            await self._ending

    async def _status(self) -> int:
        if self._reaping is None:
            self._reaping = asyncio.create_task(asyncio.to_thread(_wait, self._process))
        return await asyncio.shield(self._reaping)

    def _crash(self, what: str) -> EngineCrashedError:
        again = "send the request again: the engine restarts"
        hint = again if self._log is None else f"{again}; its last words are in {self._log}"
        return EngineCrashedError(f"the engine's process {what}", hint=hint)


def _popen(channel: int, output: BinaryIO | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER, str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=output or subprocess.DEVNULL,
        pass_fds=(channel,),
        env=config.child_environment(),
        # Not in the terminal's group: Ctrl-C must not reach it, not even while it starts.
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit status; a process that does not end by itself is ended."""
    for end in (process.terminate, process.kill):
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()


def _open_log(log: Path) -> BinaryIO:
    """Append to a log of ours, begun anew once it is long. Raises OSError."""
    make_private(log.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(log, flags, 0o600)
    if os.fstat(descriptor).st_size > LOG_BYTES_MAX:
        os.truncate(descriptor, 0)
    return os.fdopen(descriptor, "ab")
