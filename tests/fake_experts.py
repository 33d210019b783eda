"""Experts without weights on a disk without bytes: fakes at the two seams of tiers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.tiers.staging import room_for
from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.backends.torch.tiers.arms import Arms
from localrun.backends.torch.tiers.experts import Guess, StreamedExperts
from localrun.backends.torch.tiers.store import ExpertStore
from localrun.disk.reader import ALIGNMENT, Requests
from localrun.disk.staged import Stage
from localrun.errors import DiskReadError
from localrun.formats.extent import Extent

# Of an expert in its file: as in releases, it begins and ends on no page.
SIZE = 1000


def nobody() -> None:
    """Nobody asks to end a wait."""


class FakePending:
    def __init__(self, disk: FakeDisk, offset: int, error: DiskReadError | None) -> None:
        self._disk, self.offset, self.error = disk, offset, error
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    @property
    def seconds(self) -> float:
        return 0.0

    def end(self) -> None:
        self._ended.set()

    def leave(self) -> None:
        """All has been given to the disk."""

    def wait(self, check: Callable[[], None] = nobody) -> None:
        while not self._ended.wait(0.01):
            check()
            if self._disk.stalls:
                raise DiskReadError("file", self.offset, "nothing has ended")
        if self.error is not None:
            raise self.error


@dataclass
class FakeDisk:
    """A ``Reader``. Byte ``at`` of a file is what ``byte`` says; reads end at once, or while
    ``holding`` when it ends. ``failing`` are offsets of reads that fail, ``refused`` of
    those that cannot even be begun; while it ``stalls`` whoever waits is told so."""

    reads: list[tuple[int, int, bool]] = field(default_factory=list)
    failing: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    stalls: bool = False
    bytes_read: int = 0
    busy: bool = False
    _held: list[Callable[[], None]] | None = None

    @property
    def needed(self) -> int:
        """How many reads were not ahead."""
        return sum(not ahead for _, _, ahead in self.reads)

    def begin(
        self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False
    ) -> FakePending:
        assert into.ctypes.data % ALIGNMENT == 0
        columns = (requests.files, requests.offsets, requests.lengths, requests.places)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        for row in rows:
            if row[1] in self.refused:
                raise DiskReadError("file", row[1], "refused")
        broken = [row for row in rows if row[1] in self.failing]
        error = DiskReadError("file", broken[0][1], "injected") if broken else None
        pending = FakePending(self, rows[0][1], error)
        self.reads += ((file, offset, ahead) for file, offset, _, _ in rows)
        self.bytes_read += sum(length for _, _, length, _ in rows)

        def land() -> None:
            for file, offset, length, place in rows:
                assert all(number % ALIGNMENT == 0 for number in (offset, length, place))
                into[place : place + length] = byte(file, np.arange(offset, offset + length))
            pending.end()

        if self._held is None:
            land()
        else:
            self._held.append(land)
        return pending

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No read that is begun inside ends before it is left."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for land in held:
                land()

    def close(self) -> None:
        """There is nothing."""


def byte(file: int, at: NDArray[np.int64]) -> NDArray[np.uint8]:
    return ((at * 2654435761 + at // ALIGNMENT * 40503 + file * 97) >> 5).astype(np.uint8)


class _Nothing:
    """What lies behind a stage: everything has to be there already."""

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError(f"{length} bytes at {offset} were not staged")


class FakeSlots:
    """``ExpertSlots`` of one number an expert, made of the bytes of its file. Of each step it
    counts the calls that an expert was in."""

    def __init__(self, stage: Stage, number: int, count: int, slots: int) -> None:
        self.name, self.count, self.slots = f"layers.{number}.experts.{{e}}", count, slots
        self.slot_nbytes, self.read_nbytes = 100, SIZE
        self._number = number
        self._source = stage.source(number, _Nothing())
        self.values = np.full(slots, np.nan, np.float32)
        self.inside: dict[int, int] = {}
        self.filled: Counter[int] = Counter()
        self.calls: Counter[int] = Counter()
        self.failing: set[int] = set()
        self.closed = False
        self.also: FakeSlots | None = None

    def extents(self, expert: int) -> tuple[Extent, ...]:
        at = 100 + expert * SIZE
        return Extent(self._number, at, SIZE // 4), Extent(self._number, at + SIZE // 2, SIZE // 2)

    def value(self, expert: int) -> float:
        """Of all bytes."""
        total = 0.0
        for _, offset, length in self.extents(expert):
            total += int(byte(self._number, np.arange(offset, offset + length)).sum())
        return 1 + total / 2**20

    def fill(self, slot: int, expert: int) -> None:
        assert 0 <= slot < self.slots
        if expert in self.failing:
            raise RuntimeError(f"expert {expert} cannot be decoded")
        self.values[slot] = np.nan
        parts = [self._source.read(offset, length) for _, offset, length in self.extents(expert)]
        total = sum(int(np.frombuffer(part, np.uint8).sum()) for part in parts)
        self.inside[slot] = expert
        self.filled[expert] += 1
        self.values[slot] = 1 + total / 2**20

    def __call__(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        assert slots.dtype == torch.int64
        assert weights.shape == slots.shape
        assert x.shape[0] == slots.shape[0]
        self.calls.update({self.inside[slot] for slot in slots.flatten().tolist()})
        values = torch.from_numpy(self.values)[slots] * weights
        return x[:, None] * values[..., None]

    def release(self, first: int) -> int:
        self.values[first:] = np.nan
        return self.slot_nbytes * (self.slots - first)

    def close(self) -> None:
        self.closed = True


@dataclass
class Tiny:
    """A store and its layers, of ``count`` experts each."""

    disk: FakeDisk
    store: ExpertStore
    slots: list[FakeSlots]
    layers: list[StreamedExperts]

    def resident(self, at: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What a layer gives that has all of its experts."""
        values = np.array([self.slots[at].value(e) for e in range(self.slots[at].count)], "<f4")
        scaled = torch.from_numpy(values)[chosen] * weights
        return (x[:, None] * scaled[..., None]).sum(1, dtype=torch.float32)


@contextmanager
def tiny(
    *,
    places: int,
    count: int = 8,
    top: int = 2,
    layers: int = 1,
    card: int = 0,
    apart: bool = False,
    buffers: int = 4,
    workers: int | None = 2,
    guesses: Mapping[int, Guess] | None = None,
    interrupt: Callable[[], None] = nobody,
    pressure: Callable[[], str | None] = lambda: None,
) -> Iterator[Tiny]:
    disk, stage = FakeDisk(), Stage()
    slots = [FakeSlots(stage, number, count, min(places, count)) for number in range(layers)]
    room = max(room_for(each.extents(expert)) for each in slots for expert in range(count))
    store = ExpertStore(
        disk,
        stage,
        slots=places,
        card_slots=card,
        staging_bytes=buffers * room,
        workers=workers,
        interrupt=interrupt,
        pressure=pressure,
    )
    guesses = guesses or {}
    both: list[ExpertSlots] = list(slots)
    if apart:
        both = []
        for number, each in enumerate(slots):
            on_card = FakeSlots(stage, number, count, card)
            each.slots -= card
            each.also = on_card
            both.append(Arms(on_card, each))
    made = [store.layer(each, top, guesses.get(at)) for at, each in enumerate(both)]
    try:
        yield Tiny(disk, store, slots, made)
    finally:
        store.close()
