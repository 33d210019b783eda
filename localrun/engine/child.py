"""Knows no model: one run of the engine's child process, and the frames to and from it."""

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
from localrun.engine import frames
from localrun.engine.client import EngineInfo
from localrun.engine.mailbox import Mailbox
from localrun.engine.request import GenerationRequest
from localrun.errors import EngineCrashedError, EngineError, LocalrunError
from localrun.store.disk import make_private

WORKER = "localrun.cli.worker"
# From the goodbye to SIGTERM, and from there to SIGKILL.
PATIENCE_S = 6.0
# What libraries print is for finding out why one crashed: the last runs are enough.
LOG_BYTES_MAX = 1 << 20


class Child:
    """A process, its channel and the requests under way in it.

    Its end, by whatever cause, is the end of the channel: that fails all that is under way.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Path | None,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log
        self._calls = itertools.count(1)
        self._streams: dict[int, Mailbox] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._listening: asyncio.Task[None] | None = None
        self.alive = True

    @staticmethod
    async def spawn(log: Path | None) -> Child:
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
        try:
            reader, writer = await asyncio.open_connection(sock=here)
        except BaseException:
            here.close()
            process.kill()
            process.wait()
            raise
        return Child(process, reader, writer, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(self, plan: str, loader: str, timeout_s: float) -> EngineInfo:
        """Hand over the plan and wait until the weights are loaded; then listen.

        Raises:
            LocalrunError: what the loader raised.
            EngineCrashedError: the process ended.
            EngineError: not loaded within ``timeout_s`` seconds.
        """
        self._send({"type": "load", "plan": plan, "loader": loader})
        try:
            async with asyncio.timeout(timeout_s):
                frame = await self._receive()
        except TimeoutError as error:
            raise EngineError(f"the model was not loaded within {timeout_s:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise await self._crashed("while loading the model") from error
        if frame["type"] == "failed":
            raise frames.error_of(frame["error"])
        info = frames.info_of(frame["info"])
        self._listening = asyncio.create_task(self._listen())
        return info

    def submit(self, request: GenerationRequest) -> tuple[int, Mailbox]:
        """Start a generation; its number, for ``forget``, and where its events arrive."""
        call, mailbox = next(self._calls), Mailbox()
        self._send({"type": "submit", "call": call, "request": frames.request_fields(request)})
        self._streams[call] = mailbox
        return call, mailbox

    def forget(self, call: int) -> None:
        """The consumer is done; what still runs is cancelled. Does not wait."""
        if self._streams.pop(call, None) is not None:
            self._send({"type": "cancel", "call": call})

    async def ask(self, kind: str, **fields: Any) -> Any:
        """One question, one answer."""
        call = next(self._calls)
        self._send({"type": kind, "call": call, **fields})
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[call] = answer
        try:
            return await answer
        finally:
            self._answers.pop(call, None)

    async def close(self) -> None:
        """End the process: first asked, then made to. Nothing of it is left."""
        self._send({"type": "close"})
        self.alive = False
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        self._fail_all(EngineError("the engine was closed"))
        await self._hang_up()

    async def kill(self) -> None:
        """End the process without asking."""
        self.alive = False
        self._process.kill()
        await self._hang_up()

    def _send(self, frame: frames.Frame) -> None:
        data = frames.pack(frame)
        if self.alive and not self._writer.is_closing():
            self._writer.write(data)

    async def _receive(self) -> frames.Frame:
        prefix = await self._reader.readexactly(frames.PREFIX.size)
        return frames.unpack(await self._reader.readexactly(frames.body_size(prefix)))

    async def _listen(self) -> None:
        try:
            while True:
                self._deliver(await self._receive())
        except (asyncio.IncompleteReadError, OSError):
            self.alive = False
            error = await self._crashed("under this request")
        except (EngineError, KeyError, TypeError, ValueError) as damage:
            self.alive = False
            self._process.kill()
            error = EngineCrashedError(f"the engine's process sent what it should not: {damage}")
        await self._hang_up()
        self._fail_all(error)

    def _deliver(self, frame: frames.Frame) -> None:
        call = frame["call"]
        if frame["type"] == "event":
            if mailbox := self._streams.get(call):
                event = frames.event_of(frame["event"])
                mailbox.put(event)
                if event.finish is not None:
                    del self._streams[call]
        elif frame["type"] == "answer":
            if (answer := self._answers.get(call)) and not answer.done():
                answer.set_result(frame["value"])
        elif frame["type"] == "failed":
            error = frames.error_of(frame["error"])
            if mailbox := self._streams.pop(call, None):
                mailbox.fail(error)
            if (answer := self._answers.get(call)) and not answer.done():
                answer.set_exception(error)

    def _fail_all(self, error: LocalrunError) -> None:
        for mailbox in self._streams.values():
            mailbox.fail(error)
        self._streams.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)

    async def _hang_up(self) -> None:
        if not self._writer.is_closing():
            self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)
        await asyncio.to_thread(_wait, self._process)

    async def _crashed(self, when: str) -> EngineCrashedError:
        status = await asyncio.to_thread(_wait, self._process)
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        again = "send the request again: the engine restarts"
        hint = again if self._log is None else f"{again}; its last words are in {self._log}"
        return EngineCrashedError(f"the engine's process ended {when} ({how})", hint=hint)


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
