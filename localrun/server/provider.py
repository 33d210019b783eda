"""Knows no engine: models that are loaded when they are first asked for, and go when they idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Protocol

from localrun.chat.messages import ServedModel
from localrun.engine.runner import RunnerStats
from localrun.errors import LocalrunError, MemoryInUseError, ModelNotFoundError, ServerError
from localrun.server.models import LoadedModel, ModelCard, ModelFacts, PullProgress
from localrun.server.pulls import Pulls
from localrun.server.room import Candidate, Loaded, Opening, Tenant, make_room

KEEP_ALIVE_S = 30 * 60.0
# How long a model waits for others to have no request under way, before its client is told.
WAIT_S = 30.0
# How long an engine may take to say its counters: one that hangs must not hide the others.
STATS_S = 1.0


class Cancellable(Protocol):
    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Cancellable]
"""Calls a function so many seconds from now, as ``call_later`` of an event loop."""


def _later(seconds: float, call: Callable[[], None]) -> Cancellable:
    return asyncio.get_running_loop().call_later(seconds, call)


class _Slot:
    """A model that is wanted: waiting for its turn, opening, or ready. ``requests`` hold it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.used = 0
        self.opening = False
        self.ready: Loaded | None = None
        self.keep_s: float | None = None
        self.left_at = 0.0
        self.task: asyncio.Task[ServedModel]
        self.timer: Cancellable | None = None


class LoadingProvider:
    """A ``ModelProvider`` over a memory that may not hold all models at once.

    look: finds the model of that canonical name and looks at the machine; off the event loop; may
        raise any LocalrunError.
    cards: what is served, read anew each time.
    facts: what the header of a model by that name says; off the event loop; may raise. None where
        nobody reads headers.
    pulls: fetches models. None where nobody does.
    canonical: the one name of a model that has several; raises for a name that none has.
    keep_alive_s: a model is unloaded when it has had no request for so long; None never.
    wait_s: how long a load waits for its turn and for models with requests under way to become
        idle; it is tried once at least.
    changed: told the names of the models that are ready, each time they change.

    Models load one after the other: what one load takes is then known, and the disk is read at its
    full speed.
    """

    def __init__(
        self,
        look: Callable[[str], Candidate],
        *,
        cards: Callable[[], Sequence[ModelCard]],
        facts: Callable[[str], ModelFacts] | None = None,
        pulls: Pulls | None = None,
        canonical: Callable[[str], str] = str,
        keep_alive_s: float | None = KEEP_ALIVE_S,
        wait_s: float = WAIT_S,
        changed: Callable[[tuple[str, ...]], None] = lambda names: None,
        later: Later = _later,
    ) -> None:
        self._look = look
        self._cards = cards
        self._facts = facts
        self._pulls = pulls
        self._canonical = canonical
        self._keep_alive_s = keep_alive_s
        self._wait_s = wait_s
        self._changed = changed
        self._later = later
        self._slots: dict[str, _Slot] = {}
        self._uses = count(1)
        self._one_load = asyncio.Lock()
        self._idled = asyncio.Event()
        self._unloading: set[asyncio.Task[None]] = set()
        self._closed = False

    def names(self) -> Sequence[ModelCard]:
        return self._cards()

    def facts(self, name: str) -> ModelFacts:
        name = self._canonical(name)
        if self._facts is None:
            raise ModelNotFoundError(f"{name}: its header is not known here")
        return self._facts(name)

    def loaded(self) -> Sequence[LoadedModel]:
        return tuple(
            LoadedModel(
                slot.name,
                slot.ready.model.n_ctx,
                dict(slot.ready.holding.promised),
                slot.requests,
                self._keep_of(slot),
                self._left_of(slot),
            )
            for slot in self._slots.values()
            if slot.ready is not None
        )

    async def stats(self) -> dict[str, RunnerStats]:
        """The counters of each model that is ready and says them at once; idle ones stay so."""
        asked = {
            slot.name: asyncio.create_task(slot.ready.model.stats())
            for slot in self._slots.values()
            if slot.ready is not None
        }
        if not asked:
            return {}
        _, late = await asyncio.wait(asked.values(), timeout=STATS_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        told = {name: task for name, task in asked.items() if task not in late}
        return {
            name: task.result()
            for name, task in told.items()
            if not isinstance(task.exception(), LocalrunError)
        }

    def pull(self, name: str) -> AsyncGenerator[PullProgress]:
        """Bring a model to this disk; see ``Pulls.watch``."""
        if self._pulls is None:
            raise ModelNotFoundError(f"{name}: models are not pulled here")
        return self._pulls.watch(name)

    async def unload(self, name: str) -> bool:
        """Free a model that nobody uses; whether it was loaded and is no more.

        Raises:
            LocalrunError: what ``canonical`` raised.
        """
        if name not in self._slots:
            name = await asyncio.to_thread(self._canonical, name)
        slot = self._slots.get(name)
        if slot is None or slot.ready is None or slot.requests:
            return False
        self._unload(slot)
        await self._unloaded()
        return True

    @asynccontextmanager
    async def lease(self, name: str, *, keep_s: float | None = None) -> AsyncIterator[ServedModel]:
        """The model for one request: loaded once whoever asks, and kept until the block ends.

        ``keep_s``: how long it is kept then, negative for ever; None as the one before said, else
        as the server was told.

        Raises:
            ServerError: the provider was closed.
            MemoryInUseError: there was no room for it in time.
            LocalrunError: what ``canonical``, ``look`` or the load raised; tried anew next time.
        """
        if name not in self._slots:
            name = await asyncio.to_thread(self._canonical, name)
        if self._closed:
            raise ServerError("the server is shutting down")
        slot = self._slots.get(name) or self._begin(name)
        slot.requests += 1
        slot.keep_s = slot.keep_s if keep_s is None else keep_s
        self._stop_timer(slot)
        try:
            # One client that leaves must not undo what another waits for.
            yield await asyncio.shield(slot.task)
        finally:
            slot.requests -= 1
            slot.used = next(self._uses)
            if not slot.requests:
                self._left(slot)

    async def close(self) -> None:
        """Stop loading and close every model."""
        self._closed = True
        if self._pulls is not None:
            await self._pulls.close()
        slots = list(self._slots.values())
        for slot in slots:
            slot.task.cancel()
        await asyncio.gather(*(slot.task for slot in slots), return_exceptions=True)
        for slot in slots:
            self._unload(slot)
        await self._unloaded()

    def _begin(self, name: str) -> _Slot:
        slot = self._slots[name] = _Slot(name)
        slot.task = asyncio.create_task(self._load(slot))
        return slot

    def _left(self, slot: _Slot) -> None:
        """Nobody holds the model any more."""
        self._idled.set()
        if slot.ready is not None:
            self._start_timer(slot)
        elif not slot.opening:
            # Nothing is unloaded for one that nobody waits for. A load that began is kept.
            self._forget(slot)
            slot.task.cancel()

    async def _load(self, slot: _Slot) -> ServedModel:
        deadline = time.monotonic() + self._wait_s
        try:
            async with self._one_load:
                opening = await self._room_for(slot, deadline)
                slot.opening = True
                slot.ready = await opening()
        except BaseException:
            self._forget(slot)
            raise
        slot.used = next(self._uses)
        self._tell()
        if not slot.requests:
            self._start_timer(slot)
        return slot.ready.model

    async def _room_for(self, slot: _Slot, deadline: float) -> Opening:
        """Unload what is in the way; wait for what is busy, until ``deadline``.

        Raises:
            LocalrunError: see ``lease``.
        """
        while True:
            await self._unloaded()
            self._idled.clear()
            try:
                opening, gone = await asyncio.to_thread(self._choose, slot.name, self._tenants())
            except MemoryInUseError:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    raise
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._idled.wait()
                continue
            if not gone:
                return opening
            for name in gone:
                other = self._slots.get(name)
                # It may have been asked for while the choice was made.
                if other is not None and not other.requests:
                    self._unload(other)

    def _choose(self, name: str, tenants: Sequence[Tenant]) -> tuple[Opening, tuple[str, ...]]:
        return make_room(self._look(name), name, tenants)

    def _tenants(self) -> tuple[Tenant, ...]:
        return tuple(
            Tenant(slot.name, slot.ready.holding, slot.requests, slot.used)
            for slot in self._slots.values()
            if slot.ready is not None
        )

    def _keep_of(self, slot: _Slot) -> float | None:
        if slot.keep_s is None:
            return self._keep_alive_s
        return None if slot.keep_s < 0 else slot.keep_s

    def _left_of(self, slot: _Slot) -> float | None:
        keep_s = self._keep_of(slot)
        if keep_s is None or slot.requests:
            return keep_s
        return max(0.0, slot.left_at + keep_s - time.monotonic())

    def _start_timer(self, slot: _Slot) -> None:
        slot.left_at = time.monotonic()
        keep_s = self._keep_of(slot)
        if keep_s is not None and not self._closed:
            slot.timer = self._later(keep_s, lambda: self._unload(slot))

    def _stop_timer(self, slot: _Slot) -> None:
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    def _unload(self, slot: _Slot) -> None:
        """Its next request loads it anew; its memory is free when ``_unloaded`` returns."""
        self._stop_timer(slot)
        self._forget(slot)
        if slot.ready is None:
            return
        closing: Coroutine[Any, Any, None] = slot.ready.model.close()
        slot.ready = None
        task = asyncio.create_task(closing)
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)
        self._tell()

    async def _unloaded(self) -> None:
        # One that could not be closed shows in what memory there is.
        await asyncio.gather(*self._unloading, return_exceptions=True)

    def _forget(self, slot: _Slot) -> None:
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
            self._idled.set()

    def _tell(self) -> None:
        if not self._closed:
            self._changed(tuple(tenant.name for tenant in self._tenants()))
