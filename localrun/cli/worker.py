"""Knows no model and no HTTP: the engine's child process, from its first frame to its last.

``python -P -m localrun.cli.worker FD``: FD is an inherited stream socket to the parent. Standard
output and error belong to the libraries, which print there. When the parent's end closes, for
whatever reason, this process ends.
"""

from __future__ import annotations

import importlib
import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import BinaryIO

from localrun.engine import frames
from localrun.engine.client import EngineInfo
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.runner import ModelRunner
from localrun.engine.threads import ThreadRange
from localrun.errors import EngineError, LocalrunError, UsageError
from localrun.plan.plan import Plan

# A library that hangs while it is closed must not keep the process after its parent has gone.
CLOSING_S = 5.0
Work = Callable[[frames.Frame], object]
LOADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def main(arguments: list[str]) -> int:
    """Serve one engine until the parent closes. Exit code 0, or 1 when nothing was loaded."""
    # Ctrl-C goes to the whole terminal group: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _end_after
    with socket.socket(fileno=int(arguments[0])) as channel:
        incoming, outgoing = channel.makefile("rb"), channel.makefile("wb")
        with incoming:
            loaded = _end_with_parent(channel)
            try:
                return _serve(incoming, outgoing, loaded)
            finally:
                _end_within(CLOSING_S)
                _close_quietly(outgoing)


def _end_with_parent(channel: socket.socket) -> threading.Event:
    """Until the event is set, end as soon as the parent's end closes: a load reads no frames, and
    one that hangs in native code would outlive whoever asked for it."""
    loaded = threading.Event()
    watch = select.poll()
    watch.register(channel, getattr(select, "POLLRDHUP", 0))  # a hang-up is always reported

    def wait() -> None:
        watch.poll()
        if not loaded.is_set():
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    return loaded


def _serve(incoming: BinaryIO, outgoing: BinaryIO, loaded: threading.Event) -> int:
    reply = Replies(outgoing)
    first = frames.read_frame(incoming)
    if first is None:
        return 1
    try:
        plan = Plan.from_json(first["plan"])
        threads = ThreadRange(plan.execution.threads, plan.execution.threads_max)
        engine = Engine(load(first["loader"], plan), threads=threads)
        loaded.set()
    except LocalrunError as error:
        reply.send({"type": "failed", "error": frames.error_fields(error)})
        return 1
    try:
        reply.send({"type": "loaded", "info": frames.info_fields(describe(plan, engine))})
        Desk(engine, reply).serve(incoming)
    finally:
        _end_within(CLOSING_S)
        engine.close()
    return 0


def load(loader: str, plan: Plan) -> ModelRunner:
    """Import ``module:function`` and call it with the plan.

    Raises:
        UsageError: not an import string, or nothing by that name.
    """
    if not LOADER.fullmatch(loader):
        raise UsageError(f"loader {loader!r} is not module:function")
    module, _, name = loader.partition(":")
    try:
        function: Callable[[Plan], ModelRunner] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"loader {loader!r}: {error}") from error
    return function(plan)


def describe(plan: Plan, engine: Engine) -> EngineInfo:
    """What the engine says of itself; the chat template is the parent's to add."""
    vocabulary = engine.vocabulary

    def text(token: int | None) -> str:
        if token is None:
            return ""
        written = vocabulary.tokens[token].decode("utf-8", "replace")
        return vocabulary.names.get(token, written)

    return EngineInfo(
        ref=plan.ref,
        backend=plan.backend,
        architecture=plan.model.architecture,
        n_ctx=engine.n_ctx,
        bos=text(vocabulary.bos),
        eos=text(vocabulary.eos),
        add_bos=vocabulary.add_bos,
        chat_template=None,
    )


class Replies:
    """Frames to the parent from any thread. A parent that is gone is noticed by the reader."""

    def __init__(self, outgoing: BinaryIO) -> None:
        self._outgoing = outgoing
        self._lock = threading.Lock()

    def send(self, frame: frames.Frame) -> None:
        data = frames.pack(frame)
        try:
            with self._lock:
                self._outgoing.write(data)
                self._outgoing.flush()
        except OSError:
            return


class Desk:
    """Takes the parent's frames on one thread; each request streams its events from its own."""

    def __init__(self, engine: Engine, reply: Replies) -> None:
        self._engine = engine
        self._reply = reply
        self._running: dict[int, Generation] = {}
        self._lock = threading.Lock()

    def serve(self, incoming: BinaryIO) -> None:
        """Return when the parent says ``close`` or is gone."""
        while (frame := frames.read_frame(incoming)) is not None:
            match frame["type"]:
                case "submit":
                    self._submit(frame["call"], frame["request"])
                case "cancel":
                    self._cancel(frame["call"])
                case "tokenize":
                    self._answer(frame["call"], self._tokenize, frame)
                case "stats":
                    self._answer(frame["call"], self._stats, frame)
                case "close":
                    return
                case unknown:
                    raise EngineError(f"the engine's process does not know {unknown!r}")

    def _submit(self, call: int, fields: frames.Frame) -> None:
        try:
            generation = self._engine.submit(frames.request_of(fields))
        except LocalrunError as error:
            self._fail(call, error)
            return
        with self._lock:
            self._running[call] = generation
        threading.Thread(target=self._stream, args=(call, generation), daemon=True).start()

    def _stream(self, call: int, generation: Generation) -> None:
        try:
            for event in generation:
                frame = {"type": "event", "call": call, "event": frames.event_fields(event)}
                self._reply.send(frame)
        except LocalrunError as error:
            self._fail(call, error)
        finally:
            with self._lock:
                self._running.pop(call, None)

    def _cancel(self, call: int) -> None:
        with self._lock:
            generation = self._running.get(call)
        if generation is not None:
            generation.cancel()

    def _answer(
        self, call: int, work: Callable[[frames.Frame], object], frame: frames.Frame
    ) -> None:
        """Off the reading thread: a long text must not delay another request's cancel."""

        def run() -> None:
            try:
                self._reply.send({"type": "answer", "call": call, "value": work(frame)})
            except LocalrunError as error:
                self._fail(call, error)

        threading.Thread(target=run, daemon=True).start()

    def _tokenize(self, frame: frames.Frame) -> list[int]:
        return self._engine.tokenize(
            frame["text"],
            add_special=frame["add_special"],
            parse_special=frame["parse_special"],
        )

    def _stats(self, _: frames.Frame) -> frames.Frame:
        return asdict(self._engine.stats())

    def _fail(self, call: int, error: LocalrunError) -> None:
        self._reply.send({"type": "failed", "call": call, "error": frames.error_fields(error)})


def _end_after(args: threading.ExceptHookArgs) -> None:
    """A thread with an unforeseen error would leave its request waiting forever: end instead."""
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def _end_within(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _close_quietly(stream: BinaryIO) -> None:
    try:
        stream.close()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
