"""Knows no expert: memory that files are read into directly, in buffers of one size.

Direct reads begin and end on a page, stretches of files rarely do: a buffer has room for what is
read around them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localrun.disk.memory import aligned
from localrun.disk.reader import ALIGNMENT, Pending, Requests
from localrun.disk.staged import Window
from localrun.errors import UsageError
from localrun.formats.extent import Extent


@dataclass(frozen=True, slots=True)
class Layout:
    """How extents lie in a buffer: what is read, and for each extent where it then begins."""

    extents: tuple[Extent, ...]
    requests: Requests
    starts: tuple[int, ...]

    def windows(self, memory: NDArray[np.uint8]) -> list[Window]:
        return [
            (extent, memory[start : start + extent.length])
            for extent, start in zip(self.extents, self.starts, strict=True)
        ]


def room_for(extents: Iterable[Extent]) -> int:
    """What a buffer must have."""
    return sum(_end(extent) - _begin(extent) for extent in extents)


def layout(extents: tuple[Extent, ...]) -> Layout:
    offsets = [_begin(extent) for extent in extents]
    lengths = [_end(extent) - _begin(extent) for extent in extents]
    places = [sum(lengths[:at]) for at in range(len(lengths))]
    columns = ([extent.file for extent in extents], offsets, lengths, places)
    requests = Requests(*(np.array(column, dtype=np.int64) for column in columns))
    starts = (
        place + extent.offset - offset
        for extent, offset, place in zip(extents, offsets, places, strict=True)
    )
    return Layout(extents, requests, tuple(starts))


def _begin(extent: Extent) -> int:
    return extent.offset // ALIGNMENT * ALIGNMENT


def _end(extent: Extent) -> int:
    return -(-(extent.offset + extent.length) // ALIGNMENT) * ALIGNMENT


def buffers(nbytes: int, room: int) -> int:
    """How many of ``room`` bytes so many hold. Raises UsageError where that is none."""
    if nbytes < room:
        problem = f"{nbytes} bytes of staging memory hold no expert: one takes {room}"
        raise UsageError(problem, hint="plan again, with more memory for the tier ram (--ram)")
    return nbytes // room


class Buffers:
    """As many of ``room`` bytes as ``nbytes`` hold, see ``buffers``. One thread at a time."""

    def __init__(self, nbytes: int, room: int) -> None:
        self.count = buffers(nbytes, room)
        self.nbytes = self.count * room
        memory = aligned(self.nbytes)
        self._free = [memory[at * room : (at + 1) * room] for at in range(self.count)]
        self._leaving: list[tuple[Pending, NDArray[np.uint8]]] = []

    def take(self) -> NDArray[np.uint8] | None:
        if not self._free:
            self._settle()
        return self._free.pop() if self._free else None

    def put(self, memory: NDArray[np.uint8], pending: Pending) -> None:
        """Back, as soon as nothing is read into it: what could still be left out is."""
        pending.leave()
        self._leaving.append((pending, memory))

    @property
    def leaving(self) -> Pending | None:
        """What was begun first of those reads whose buffers nobody needs any more."""
        self._settle()
        return self._leaving[0][0] if self._leaving else None

    def _settle(self) -> None:
        self._free += [memory for pending, memory in self._leaving if pending.done]
        self._leaving = [each for each in self._leaving if not each[0].done]
