"""Knows no numbers: single rows of files, read in whole blocks through a reader, ahead of need.

Neighbouring rows share a block, a row over a block's edge takes two; no block is read twice for
rows that are read together. A long prompt's rows would need a block of memory each at once, so they
are read in waves that share a bounded amount: whoever begins first is served first, the others go
on as memory comes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from weakref import WeakSet

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from localrun.disk.memory import aligned
from localrun.disk.reader import ALIGNMENT, Pending, Reader, Requests
from localrun.errors import DiskReadError, EngineError
from localrun.formats.text import shown
from localrun.releases.weights import Bytes

Ids = NDArray[np.int64]
WAVE_BYTES: Final = 16 << 20
WAVES: Final = 4
Landed = Callable[[int, int, list[Bytes]], None]
"""Is told when the rows from one place in what was asked for to another have come: their bytes of
each part."""


class Lying(NamedTuple):
    """``rows`` rows of ``width`` bytes, one behind another from ``offset`` of file number
    ``file``; ``name`` is the tensor's."""

    name: str
    file: int
    offset: int
    width: int
    rows: int

    @property
    def blocks(self) -> int:
        """At most, that a row touches."""
        return (self.width + ALIGNMENT - 2) // ALIGNMENT + 1


@dataclass(frozen=True, slots=True)
class _Wave:
    """Rows ``first`` to ``last`` of what is fetched: those of each part begin in ``memory`` at
    ``starts``."""

    pending: Pending
    memory: Bytes
    first: int
    last: int
    starts: tuple[NDArray[np.int64], ...]


class RowReads:
    """What the tables of one model share: a reader, and at most ``waves`` pieces of memory that
    reads go to. ``interrupt`` is called while somebody waits, and may raise."""

    def __init__(
        self,
        reader: Reader,
        interrupt: Callable[[], None],
        *,
        wave_bytes: int = WAVE_BYTES,
        waves: int = WAVES,
    ) -> None:
        self.reader, self.interrupt = reader, interrupt
        self.wave_bytes, self._waves = wave_bytes, waves
        self._free: list[Bytes] = []
        # Of steps that ended early nobody lands the waves: they and their memory just go.
        self._fetches: WeakSet[Fetch] = WeakSet()

    def begin(self, parts: Sequence[Lying], ids: Ids, landed: Landed) -> Fetch:
        """Rows ``ids``, rising, of each of ``parts`` on their way.

        Raises:
            DiskReadError: the reader is closed.
        """
        made = Fetch(self, tuple(parts), ids, landed)
        self._fetches.add(made)
        made.advance()
        return made

    def take(self) -> Bytes | None:
        """Memory for a wave, or None while others have it all."""
        if sum(each.waves for each in self._fetches) >= self._waves:
            return None
        return self.more()

    def more(self) -> Bytes:
        return self._free.pop() if self._free else aligned(self.wave_bytes)

    def give(self, memory: Bytes) -> None:
        if len(self._free) < self._waves:
            self._free.append(memory)


class Fetch:
    """Rows under way. What it holds is as much as was begun: see ``RowReads.begin``."""

    def __init__(self, reads: RowReads, parts: tuple[Lying, ...], ids: Ids, landed: Landed) -> None:
        self._reads, self._parts, self._ids, self._landed = reads, parts, ids, landed
        self._flying: deque[_Wave] = deque()
        self._begun = 0
        block = ALIGNMENT * sum(part.blocks for part in parts)
        self._each = reads.wave_bytes // block
        if not self._each:
            raise EngineError(f"{shown(parts[0].name)}: a row touches {block} bytes of blocks")
        self.reads = self.nbytes = 0

    @property
    def waves(self) -> int:
        return len(self._flying)

    def advance(self) -> None:
        """Take what has come, and begin what there is memory for; waits for nothing.

        Raises:
            DiskReadError: a read failed, or its file is not the one that was opened.
        """
        while self._flying and self._flying[0].pending.done:
            self._land()
        while self._begun < self._ids.size and (memory := self._reads.take()) is not None:
            self._begin(memory)

    def wait(self) -> None:
        """Until all rows are there.

        Raises:
            DiskReadError: as ``advance``. Whatever ``interrupt`` raises.
        """
        self.advance()
        while self._flying or self._begun < self._ids.size:
            if not self._flying:
                # All memory is with fetches that are waited for later than this one.
                self._begin(self._reads.more())
            self._land()
            self.advance()

    def _begin(self, memory: Bytes) -> None:
        first, last = self._begun, min(self._begun + self._each, self._ids.size)
        found, starts, place = [], [], 0
        for part in self._parts:
            requests, own = _blocks(part, self._ids[first:last], place)
            place += int(requests.lengths.sum())
            found.append(requests)
            starts.append(own)
        columns = zip(*((r.files, r.offsets, r.lengths, r.places) for r in found), strict=True)
        requests = Requests(*(np.concatenate(column) for column in columns))
        pending = self._reads.reader.begin(requests, memory)
        self._flying.append(_Wave(pending, memory, first, last, tuple(starts)))
        self._begun = last
        self.reads += requests.offsets.size
        self.nbytes += place

    def _land(self) -> None:
        """The first wave's rows, once they have come."""
        wave = self._flying[0]
        try:
            wave.pending.wait(self._reads.interrupt)
        except DiskReadError as error:
            raise error.of(self._tensor(error)) from error
        self._flying.popleft()
        rows = [
            sliding_window_view(wave.memory, part.width)[starts]
            for part, starts in zip(self._parts, wave.starts, strict=True)
        ]
        self._reads.give(wave.memory)
        self._landed(wave.first, wave.last, rows)

    def _tensor(self, error: DiskReadError) -> str:
        """Whose rows the failed read was for: reads begin up to a block before what is wanted."""
        for part in self._parts:
            if part.offset - ALIGNMENT < error.offset < part.offset + part.rows * part.width:
                return shown(part.name)
        return shown(self._parts[0].name)


def _blocks(part: Lying, ids: Ids, place: int) -> tuple[Requests, NDArray[np.int64]]:
    """Reads of all blocks that rows lie in, each once and neighbours joined, to memory from
    ``place`` on; and where each row begins there."""
    begin = part.offset + ids * part.width
    first, last = begin // ALIGNMENT, (begin + part.width - 1) // ALIGNMENT
    touched = np.unique(np.minimum(first[:, None] + np.arange(part.blocks), last[:, None]))
    starts = place + np.searchsorted(touched, first) * ALIGNMENT + begin % ALIGNMENT
    runs = np.flatnonzero(np.diff(touched, prepend=-2) != 1)
    counts = np.diff(runs, append=touched.size)
    return (
        Requests(
            np.full(runs.size, part.file, np.int64),
            touched[runs] * ALIGNMENT,
            counts * ALIGNMENT,
            place + runs * ALIGNMENT,
        ),
        starts,
    )
