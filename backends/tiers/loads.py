"""Knows no cache: experts on their way from disk into places, and guesses on theirs into staging.

All that a layer misses is begun at once, as many as there are buffers. What has been read is
decoded into its place by threads of this module, while whoever asked computes with what is there;
what is small by whoever asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Condition
from time import perf_counter
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from localrun.backends.tiers.staging import Buffers, Layout, layout
from localrun.disk.reader import Pending, Reader, nobody
from localrun.disk.staged import Stage
from localrun.errors import DiskReadError, LocalrunError
from localrun.formats.extent import Extent

_LOOKS_S: Final = 0.1
_WORKERS: Final = 2
# Threads of an interpreter wait for each other: what is decoded sooner than they take turns is
# decoded by whoever asks.
_SMALL: Final = 2 << 20


class Filled(Protocol):
    """What experts are put into: the slots of a layer."""

    @property
    def name(self) -> str: ...

    def extents(self, expert: int) -> tuple[Extent, ...]: ...

    def fill(self, slot: int, expert: int) -> None: ...


class _Dropped(Exception):
    """Nobody wants this load any more."""


class _Begun(Exception):
    """A load that was waited for has a buffer."""


class _Read:
    """Of one expert into staging memory."""

    def __init__(self, layout: Layout, memory: NDArray[np.uint8], pending: Pending) -> None:
        self.layout, self.memory, self.pending = layout, memory, pending


class _Refused:
    """A ``Pending`` of reads that could not be begun: whoever waits for them is told."""

    done, seconds = True, 0.0

    def __init__(self, error: Exception) -> None:
        self._error = error

    def wait(self, check: Callable[[], None] = nobody) -> None:
        raise self._error

    def leave(self) -> None:
        """There is nothing."""


class Load:
    """One expert that is to lie in a place."""

    def __init__(self, slots: Filled, expert: int, place: int) -> None:
        self.slots, self.expert, self.place = slots, expert, place
        self.read: _Read | None = None
        self.dropped = False
        self.ended: Future[float] | None = None

    def hold_on(self) -> None:
        if self.dropped:
            raise _Dropped


class Loads:
    """Of a model. One thread asks; ``workers`` others decode, or it does itself where there are
    none: by default as the size of experts asks for. ``room`` is that of a buffer."""

    def __init__(
        self,
        reader: Reader,
        stage: Stage,
        *,
        staging_bytes: int,
        room: int,
        workers: int | None = None,
    ) -> None:
        self._reader, self._stage = reader, stage
        self._buffers = Buffers(staging_bytes, room)
        self.staging_bytes, self.buffers = self._buffers.nbytes, self._buffers.count
        if workers is None:
            workers = 0 if room <= _SMALL else _WORKERS
        self._pool = ThreadPoolExecutor(workers, "experts") if workers else None
        self._changed = Condition()
        self._waiting: deque[Load] = deque()
        self._guesses: dict[int, _Read] = {}
        self._ahead: deque[int] = deque()
        self._guessed_of: Filled | None = None
        self._under_way: dict[int, Load] = {}
        self._ended: SimpleQueue[Load] = SimpleQueue()
        self.guessed = self.right = 0
        self.waited = 0.0
        """Seconds that whoever asked waited for reads, or for those who decode them."""

    def guessed_of(self, slots: Filled) -> frozenset[int]:
        """What was guessed of these."""
        return frozenset(self._guesses if self._guessed_of is slots else ())

    def want(self, slots: Filled, places: Mapping[int, int], later: Collection[int] = ()) -> None:
        """Begin to load experts into places, ``later`` others of the same slots. What was guessed
        and is of neither is dropped."""
        loads = [Load(slots, expert, place) for expert, place in places.items()]
        with self._changed:
            guessed = self._guesses if self._guessed_of is slots else {}
            for load in loads:
                load.read = guessed.pop(load.expert, None)
            early = [load for load in loads if load.read is not None]
            late = [load for load in loads if load.read is None]
            self.right += len(early)
            self._drop_guesses([expert for expert in guessed if expert in later])
            self._waiting += late
            self._begin()
        for load in early + late:
            self._under_way[load.expert] = load
            if self._pool is not None:
                load.ended = self._pool.submit(self._carry, load)
                load.ended.add_done_callback(partial(_tell, self._ended, load))

    def _drop_guesses(self, but: Collection[int] = ()) -> None:
        """Those that were not begun, too. Whoever calls it holds the lock."""
        self._ahead.clear()
        kept = {expert: self._guesses.pop(expert) for expert in but}
        for read in self._guesses.values():
            self._buffers.put(read.memory, read.pending)
        self._guesses = kept

    def guess(self, slots: Filled, experts: Iterable[int]) -> None:
        """Read ahead what will probably be wanted next: into at most half of the buffers, as soon
        as nobody waits for one."""
        with self._changed:
            self._drop_guesses()
            self._guessed_of = slots
            self._ahead = deque(islice(experts, self.buffers // 2))
            self._begin()

    def next(self, check: Callable[[], None], *, wait: bool = True) -> list[int]:
        """Experts that have come into their places since; where none has, none, or it waits for
        one.

        Raises:
            DiskReadError, SourceError: one of them did not, and all others are dropped. Whatever
                ``check`` raises, which is called ten times a second.
        """
        try:
            came = (self._decoded if self._pool is None else self._told)(check, wait)
            for load in came:
                del self._under_way[load.expert]
        except BaseException:
            self.drop()
            raise
        return [load.expert for load in came]

    def _decoded(self, check: Callable[[], None], wait: bool) -> list[Load]:
        """By this thread: what has been read, else what was begun first."""
        loads = self._under_way.values()
        came = [load for load in loads if load.read is not None and load.read.pending.done]
        if wait and not came:
            came = [next(iter(loads))]
        for load in came:
            check()
            self.waited += self._carry(load, check)
        return came

    def _told(self, check: Callable[[], None], wait: bool) -> list[Load]:
        """By those of the pool."""
        start = perf_counter()
        came = [self._one(check)] if wait else []
        self.waited += perf_counter() - start
        while not self._ended.empty():
            came.append(self._ended.get())
        for load in came:
            assert load.ended is not None
            load.ended.result()
        return came

    def _one(self, check: Callable[[], None]) -> Load:
        while True:
            check()
            try:
                return self._ended.get(timeout=_LOOKS_S)
            except Empty:
                continue

    def drop(self) -> None:
        """Nobody waits any more. When this returns no place is written to; memory that is still
        read into stays taken until that has ended."""
        loads = list(self._under_way.values())
        with self._changed:
            for load in loads:
                load.dropped = True
            self._waiting.clear()
            self._changed.notify_all()
        for load in loads:
            if load.ended is None or load.ended.cancel():
                self._give_back(load)
            else:
                load.ended.exception()  # its end, whatever that is
        self._under_way = {}
        self._ended = SimpleQueue()

    def close(self) -> None:
        """Again does nothing."""
        self.drop()
        with self._changed:
            self._drop_guesses()
        if self._pool is not None:
            self._pool.shutdown()

    def _carry(self, load: Load, check: Callable[[], None] = nobody) -> float:
        """Wait for the read, decode it into its place; how long the wait was."""
        start = perf_counter()
        try:
            read = self._begun(load, check)
            read.pending.wait(partial(_hold_on, load, check))
            waited = perf_counter() - start
            with self._stage.holding(read.layout.windows(read.memory)):
                load.slots.fill(load.place, load.expert)
            return waited
        except DiskReadError as error:
            raise error.of(load.slots.name.replace("{e}", str(load.expert))) from error
        finally:
            self._give_back(load)

    def _begun(self, load: Load, check: Callable[[], None]) -> _Read:
        """Its read, once there was a buffer for it. Where all are taken by reads that nobody waits
        for, this waits for those: so a disk that stalls is told here too."""
        while True:
            check()
            with self._changed:
                load.hold_on()
                self._begin()
                if load.read is not None:
                    return load.read
                leaving = self._buffers.leaving
                if leaving is None:
                    self._changed.wait(_LOOKS_S)
                    continue
            try:
                leaving.wait(partial(_hold_up, load, check))
            except _Begun:
                continue
            except DiskReadError:
                if not leaving.done:
                    raise

    def _give_back(self, load: Load) -> None:
        with self._changed:
            read, load.read = load.read, None
            if read is not None:
                self._buffers.put(read.memory, read.pending)
            self._begin()
            self._changed.notify_all()

    def _begin(self) -> None:
        """Read what waits for a buffer, then what was guessed. Whoever calls it holds the lock."""
        while self._waiting:
            first = self._waiting[0]
            first.read = self._read(first.slots, first.expert)
            if first.read is None:
                return
            self._waiting.popleft()
        while self._ahead and self._guessed_of is not None:
            read = self._read(self._guessed_of, self._ahead[0], ahead=True)
            if read is None:
                return
            self._guesses[self._ahead.popleft()] = read
            self.guessed += 1

    def _read(self, slots: Filled, expert: int, *, ahead: bool = False) -> _Read | None:
        memory = self._buffers.take()
        if memory is None:
            return None
        pending: Pending
        laid = layout(())
        try:
            laid = layout(slots.extents(expert))
            pending = self._reader.begin(laid.requests, memory, ahead=ahead)
        except (LocalrunError, OSError, MemoryError) as error:
            # Its buffer comes back as that of any read that failed, its error where it is needed.
            pending = _Refused(error)
        return _Read(laid, memory, pending)


def _hold_on(load: Load, check: Callable[[], None]) -> None:
    load.hold_on()
    check()


def _hold_up(load: Load, check: Callable[[], None]) -> None:
    _hold_on(load, check)
    if load.read is not None:
        raise _Begun


def _tell(ended: SimpleQueue[Load], load: Load, _: Future[float]) -> None:
    ended.put(load)
