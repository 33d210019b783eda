"""Knows no disk: bytes of files that lie in memory already, for whoever reads those files.

What decodes weights reads its bytes from a ``Source``. Where they were read ahead, past the page
cache and several at once, the same decoding gets them from there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.formats.reader import Lookable

Window = tuple[Extent, NDArray[np.uint8]]
"""A stretch of a file, and its bytes."""


class Stage:
    """Of the files of one model. Each thread has windows of its own."""

    def __init__(self) -> None:
        self._own = threading.local()

    def source(self, file: int, behind: Lookable) -> Lookable:
        """Reads of file number ``file``: from a window where one holds all that is asked for, else
        from ``behind``."""
        return _Staged(self, file, behind)

    @contextmanager
    def holding(self, windows: Sequence[Window]) -> Iterator[None]:
        """What this thread reads inside comes from ``windows``; their memory must not change."""
        before = self._windows
        self._own.windows = tuple(windows)
        try:
            yield
        finally:
            self._own.windows = before

    def found(self, wanted: Extent) -> memoryview | None:
        """The bytes, not to be written to, where one window of this thread holds all of them."""
        for (file, offset, length), data in self._windows:
            start = wanted.offset - offset
            if file == wanted.file and start >= 0 and start + wanted.length <= length:
                return data[start : start + wanted.length].data.toreadonly()
        return None

    @property
    def _windows(self) -> tuple[Window, ...]:
        found: tuple[Window, ...] = getattr(self._own, "windows", ())
        return found


@dataclass(frozen=True, slots=True)
class _Staged:
    """Of file number ``file``."""

    stage: Stage
    file: int
    behind: Lookable

    def read(self, offset: int, length: int) -> bytes | memoryview:
        found = self.stage.found(Extent(self.file, offset, length))
        return self.behind.read(offset, length) if found is None else found
