"""Knows no network and no route: models that are being fetched, each once whoever asks for it.

A fetch runs in a thread. It ends with the last who waits for it, as nobody else would know of it;
what has arrived is continued the next time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from localrun.errors import BusyError, ModelNotFoundError, ServerError
from localrun.ref import LocalRef, ModelRef, PathRef, parse
from localrun.server.models import PullProgress
from localrun.store.progress import Progress

MAX_PULLS: Final = 4
# Watchers are told so often; what was fetched in between they hear of then.
_EVERY_S: Final = 0.1
_CLOSE_S: Final = 5.0

Fetch = Callable[[ModelRef, Progress], object]
"""Brings a model to this disk, in a thread; ends where its progress raises."""


class _Stopped(ServerError):
    """Nobody waits for the model any more."""


class _Told:
    """A ``Progress`` for the thread that fetches; ``now`` is how far it is, for the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now: PullProgress | None = None
        self.changed = asyncio.Event()
        self._loop = loop
        self._stop = threading.Event()
        self._due = False

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.now = PullProgress(label, total_bytes, done_bytes)
        self._on_loop(self.wake)

    def advance(self, bytes: int) -> None:
        if self._stop.is_set():
            raise _Stopped("the pull was stopped")
        now = self.now
        assert now is not None
        completed = max(0, now.completed + bytes)
        self.now = PullProgress(now.label, now.total, min(completed, now.total or completed))
        if not self._due:
            self._due = True
            self._on_loop(self._loop.call_later, _EVERY_S, self.wake)

    def finish(self) -> None:
        self._on_loop(self.wake)

    def stop(self) -> None:
        self._stop.set()

    def wake(self) -> None:
        """Let those go on who wait for a change; on the event loop."""
        self._due = False
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    def _on_loop(self, call: Callable[..., object], *values: object) -> None:
        # A loop that closed has nobody who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *values)


class _Pull:
    def __init__(self, told: _Told, done: asyncio.Future[object]) -> None:
        self.told = told
        self.done = done
        self.watchers = 0


class Pulls:
    """The fetches under way, by reference."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pulls: dict[str, _Pull] = {}
        self._threads = ThreadPoolExecutor(MAX_PULLS, thread_name_prefix="pull")

    async def watch(self, name: str) -> AsyncGenerator[PullProgress]:
        """Fetch a model, or join who does; ends when it is on this disk whole.

        Raises:
            RefError, ModelNotFoundError: nothing that can be fetched is called that.
            BusyError: ``MAX_PULLS`` others are under way.
            LocalrunError: what the fetch raised.
        """
        ref = _fetchable(name)
        pull = self._pulls.get(str(ref)) or self._begin(ref)
        pull.watchers += 1
        said: PullProgress | None = None
        try:
            while True:
                changed = pull.told.changed
                now = pull.told.now
                if now is not None and now != said:
                    said = now
                    yield now
                elif pull.done.done():
                    break
                else:
                    await changed.wait()
            await asyncio.shield(pull.done)
        finally:
            pull.watchers -= 1
            if not pull.watchers:
                self._leave(str(ref), pull)

    async def close(self) -> None:
        """End every fetch. One that hears nothing of its network for long is left to end alone."""
        for pull in self._pulls.values():
            pull.told.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        under_way = [pull.done for pull in self._pulls.values() if not pull.done.done()]
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=_CLOSE_S)
            for done in late:
                done.cancel()

    def _begin(self, ref: ModelRef) -> _Pull:
        running = sum(not pull.done.done() for pull in self._pulls.values())
        if running >= MAX_PULLS:
            raise BusyError(f"{running} models are being pulled")
        loop = asyncio.get_running_loop()
        told = _Told(loop)
        done: asyncio.Future[object] = loop.run_in_executor(self._threads, self._fetch, ref, told)
        pull = self._pulls[str(ref)] = _Pull(told, done)

        def ended(done: asyncio.Future[object]) -> None:
            # Looked at: one that nobody waits for any more is nobody's error.
            if not done.cancelled():
                done.exception()
            told.wake()

        done.add_done_callback(ended)
        return pull

    def _leave(self, name: str, pull: _Pull) -> None:
        pull.told.stop()
        if self._pulls.get(name) is pull:
            del self._pulls[name]


def _fetchable(name: str) -> ModelRef:
    ref = parse(name)
    if isinstance(ref, PathRef | LocalRef):
        raise ModelNotFoundError(
            f"{name!r}: what lies on this disk cannot be pulled",
            hint="name a model of the catalogue, or ORG/REPO of the hub",
        )
    return ref
