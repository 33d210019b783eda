"""Knows no system call: reads of several files cut into pieces and put in the queues of their
disks.

Where a file has copies, its pieces are dealt out so that all disks would end together, by what
waits for each and how fast it was of late.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.disk.calls import READ
from localrun.disk.files import OpenFile
from localrun.disk.pending import Begun, Part
from localrun.disk.queue import DiskQueue
from localrun.disk.reader import ALIGNMENT, STALL_S, Pending, Requests
from localrun.errors import DiskReadError

# A large read as several: a disk answers them side by side, and what is needed more does not wait
# behind the whole of it.
PIECE: Final = 1 << 20
# Of reads up to this size there may be too many to look after their files each time.
_SMALL: Final = 64 << 10
_LOOK_S: Final = 0.1
_CLOSE_S: Final = 1.0

Ints = NDArray[np.int64]


class QueuedReader:
    """``copies`` are the files, and the same again on other disks; ``queues`` has one for each
    disk, by its number."""

    def __init__(
        self,
        copies: Sequence[Sequence[OpenFile]],
        queues: dict[int, DiskQueue],
        *,
        stall_s: float = STALL_S,
    ) -> None:
        self._copies, self._queues, self._stall_s = copies, queues, stall_s
        self._sizes = np.array([file.size for file in copies[0]], np.int64)
        # Files whose copies lie on the same disks are dealt out alike.
        disks = [tuple(file.device for file in same) for same in zip(*copies, strict=True)]
        self._disks = list(dict.fromkeys(disks))
        self._group = np.array([self._disks.index(row) for row in disks], np.int64)
        self._descriptors = np.array(
            [[file.descriptor for file in files] for files in copies], np.int64
        )
        self._looked = np.zeros(len(self._sizes))
        self._closed = False

    def begin(self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False) -> Pending:
        self._refuse(requests, into)
        pieces, expected = self._pieces(requests, PIECE)
        pending = Begun(into, lambda: self._look(requests), self._stall_s)
        parts = []
        base = into.ctypes.data
        for copy, queue, mine in self._dealt(pieces):
            files = pieces.files[mine]
            reads = np.zeros(len(files), READ)
            reads["descriptor"] = self._descriptors[copy, files]
            reads["buffer"] = base + pieces.places[mine]
            reads["bytes"] = lengths = pieces.lengths[mine]
            reads["offset"] = pieces.offsets[mine]
            small = int(lengths.max()) <= _SMALL
            of = self._copies[copy]
            parts.append(Part(pending, queue, reads, expected[mine], of, small=small, ahead=ahead))
        pending.consists_of(parts)
        for part in parts:
            part.queue.begin(part)
        return pending

    @property
    def bytes_read(self) -> int:
        return sum(queue.bytes_read for queue in self._queues.values())

    @property
    def busy(self) -> bool:
        return any(queue.busy for queue in self._queues.values())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for queue in self._queues.values():
            queue.close()
        until = time.monotonic() + _CLOSE_S
        for queue in self._queues.values():
            queue.join(max(0.0, until - time.monotonic()))

    def _refuse(self, requests: Requests, into: NDArray[np.uint8]) -> None:
        """What would be read to wrong places, or not at all."""
        if not requests.lengths.any():
            return
        if not into.flags.c_contiguous or not into.flags.writeable or into.dtype != np.uint8:
            raise ValueError("reads go to writable bytes in one piece")
        rows = (requests.offsets, requests.lengths, requests.places)
        low = np.bitwise_or.reduce(rows[0] | rows[1] | rows[2], initial=into.ctypes.data)
        if low % ALIGNMENT or low < 0:
            raise ValueError(f"offsets, lengths and places are multiples of {ALIGNMENT}")
        if (requests.places + requests.lengths).max() > into.nbytes:
            raise ValueError(f"a read ends behind the {into.nbytes} bytes it goes to")
        if requests.files.min() < 0 or requests.files.max() >= len(self._sizes):
            raise ValueError(f"a read of none of the {len(self._sizes)} files")
        over = requests.offsets + requests.lengths - self._sizes[requests.files]
        if over.max() >= ALIGNMENT:
            worst = int(over.argmax())
            file = self._copies[0][int(requests.files[worst])]
            offset = int(requests.offsets[worst])
            problem = file.changed() or f"the file ends before, with {file.size} bytes"
            raise DiskReadError(str(file.path), offset, problem)

    def _pieces(self, requests: Requests, piece: int) -> tuple[Requests, Ints]:
        """The same reads in pieces of about ``piece``, those of one read alike: a short rest would
        cost a disk as much as a whole one. How many bytes each of them must give."""
        files, offsets, lengths, places = (
            requests.files,
            requests.offsets,
            requests.lengths,
            requests.places,
        )
        counts = np.where(lengths > 0, np.maximum(1, (lengths + piece // 2) // piece), 0)
        if (counts != 1).any():  # a read of nothing has no piece
            whole = -(-lengths // np.maximum(counts, 1))
            size = -(-whole // ALIGNMENT) * ALIGNMENT
            # Rounded up to blocks, fewer may do.
            counts = -(-lengths // np.maximum(size, 1))
            of = np.repeat(np.arange(len(counts)), counts)
            before = np.repeat(np.cumsum(counts) - counts, counts)
            step = (np.arange(len(of)) - before) * size[of]
            files, offsets, places = files[of], offsets[of] + step, places[of] + step
            lengths = np.minimum(lengths[of] - step, size[of])
        expected = np.minimum(lengths, self._sizes[files] - offsets)
        return Requests(files, offsets, lengths, places), expected

    def _dealt(self, pieces: Requests) -> list[tuple[int, DiskQueue, Ints | slice]]:
        """Which pieces each queue reads, and from which copy."""
        if len(self._disks) == 1 and len(self._copies) == 1:
            everything = slice(None)
            only = self._queues[self._disks[0][0]]
            return [(0, only, everything)] if len(pieces.files) else []
        found: list[tuple[int, DiskQueue, Ints | slice]] = []
        groups = self._group[pieces.files]
        for group in np.unique(groups).tolist():
            mine = np.flatnonzero(groups == group)
            queues = [self._queues[disk] for disk in self._disks[group]]
            ends = np.cumsum(pieces.lengths[mine])
            shares = even_ends(int(ends[-1]), [q.backlog for q in queues], [q.rate for q in queues])
            cuts = np.searchsorted(ends, np.cumsum(shares)[:-1], side="left").tolist()
            for copy, (first, last) in enumerate(pairwise([0, *cuts, len(mine)])):
                if first < last:
                    found.append((copy, queues[copy], mine[first:last]))
        return found

    def _look(self, requests: Requests) -> tuple[OpenFile, str] | None:
        """What has happened to a file of ``requests``, if anything has. Of small reads each file is
        looked after ten times a second at most."""
        touched = np.flatnonzero(np.bincount(requests.files))
        now = time.monotonic()
        if requests.lengths.max(initial=0) <= _SMALL:
            touched = touched[now - self._looked[touched] >= _LOOK_S]
        self._looked[touched] = now
        for number in touched.tolist():
            for files in self._copies:
                if (problem := files[number].changed()) is not None:
                    self._looked[number] = 0.0  # and again at the next read
                    return files[number], problem
        return None


def even_ends(total: int, backlogs: Sequence[int], rates: Sequence[float]) -> list[float]:
    """Of ``total`` bytes each disk's share, so that those that get any end at the same time."""
    order = sorted(range(len(rates)), key=lambda disk: backlogs[disk] / rates[disk])
    behind, together, end = 0.0, 0.0, 0.0
    for disk in order:
        if together and backlogs[disk] / rates[disk] >= end:
            break
        behind += backlogs[disk]
        together += rates[disk]
        end = (total + behind) / together
    return [max(0.0, end * rate - backlog) for rate, backlog in zip(rates, backlogs, strict=True)]
