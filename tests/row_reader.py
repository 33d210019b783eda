"""A reader of files for tests: reads when it is waited for, and fails where it is told to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localrun.disk.reader import ALIGNMENT, Pending, Requests
from localrun.errors import DiskReadError


def never() -> None:
    """Nobody interrupts."""


@dataclass(eq=False)
class Waiting:
    """Reads that are made once somebody waits for them, or by ``RowReader.answer``."""

    reader: RowReader
    requests: Requests
    into: NDArray[np.uint8]
    done: bool = False
    seconds: float = 0.0
    failure: DiskReadError | None = None

    def wait(self, check: Callable[[], None] = never) -> None:
        check()
        self.answer()
        if self.failure is not None:
            raise self.failure

    def leave(self) -> None:
        """All has been given to the disk."""

    def answer(self) -> None:
        if not self.done:
            self.done = True
            self.failure = self.reader.read(self.requests, self.into)


@dataclass
class RowReader:
    """Holds every request against the rules of ``localrun.disk.reader``. ``fail`` gets the number
    of a file and an offset, and says what is wrong there, or nothing; ``spoil`` may change what was
    read."""

    paths: Sequence[Path]
    fail: Callable[[int, int], str] = lambda file, offset: ""
    spoil: Callable[[NDArray[np.uint8]], None] = lambda memory: None
    begun: list[Waiting] = field(default_factory=list)
    bytes_read: int = 0
    busy: bool = False

    def begin(self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False) -> Pending:
        columns = requests.offsets, requests.lengths, requests.places
        assert all((column % ALIGNMENT == 0).all() for column in columns)
        assert into.ctypes.data % ALIGNMENT == 0
        assert (requests.lengths > 0).all()
        assert (requests.places + requests.lengths).max(initial=0) <= into.size
        order = np.argsort(requests.places)
        ends = (requests.places + requests.lengths)[order]
        assert (ends[:-1] <= requests.places[order][1:]).all()
        made = Waiting(self, requests, into)
        self.begun.append(made)
        return made

    def answer(self) -> None:
        """Make all reads that were begun."""
        for each in self.begun:
            each.answer()

    def read(self, requests: Requests, into: NDArray[np.uint8]) -> DiskReadError | None:
        columns = (requests.files, requests.offsets, requests.lengths, requests.places)
        for file, offset, length, place in zip(*(c.tolist() for c in columns), strict=True):
            path = self.paths[file]
            problem = self.fail(file, offset)
            with path.open("rb") as opened:
                found = os.pread(opened.fileno(), length, offset)
                end = os.fstat(opened.fileno()).st_size
            if not problem and len(found) < min(length, end - offset):
                problem = "short"
            if not problem and offset + length - end >= ALIGNMENT:
                problem = "begins behind the file's end"
            if problem:
                return DiskReadError(str(path), offset, problem)
            into[place : place + len(found)] = np.frombuffer(found, np.uint8)
            self.bytes_read += length
        self.spoil(into)
        return None

    def close(self) -> None:
        """Files are open while they are read only."""
