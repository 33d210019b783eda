"""Knows no disk: bytes of files that lie in memory already, for whoever reads those files.

What decodes weights reads its bytes from a ``Source``. Where they were read ahead, past the page
cache and several at once, the same decoding gets them from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent
from localrun.formats.reader import Source

Window = tuple[Extent, NDArray[np.uint8]]
"""A stretch of a file, and its bytes."""


class Stage:
    """Of the files of one model. Each thread has windows of its own."""

    def source(self, file: int, behind: Source) -> Source:
        """Reads of file number ``file``: from a window where one holds all that is asked for, else
        from ``behind``."""
        raise NotImplementedError

    @contextmanager
    def holding(self, windows: Sequence[Window]) -> Iterator[None]:
        """What this thread reads inside comes from ``windows``; their memory must not change."""
        raise NotImplementedError
