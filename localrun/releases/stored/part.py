"""Knows no meaning of a byte: one tensor of a file, a few of its rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from localrun.errors import HeaderError, SourceError
from localrun.formats.extent import Extent
from localrun.formats.header import TensorInfo
from localrun.formats.reader import Lookable
from localrun.formats.text import shown
from localrun.releases.weights import Bytes

Parts = Callable[[TensorInfo], "Part"]
"""Gives a tensor of a header together with the file that it is read from."""


@dataclass(frozen=True)
class Part:
    """A tensor as it is stored. ``file`` is the name of its file, for errors."""

    source: Lookable
    info: TensorInfo
    file: str

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def kind(self) -> str:
        return self.info.type.name

    @property
    def columns(self) -> int:
        return self.info.shape[-1] if self.info.shape else 1

    @property
    def rows(self) -> int:
        """Of the tensor as stored: all dimensions but the last."""
        return math.prod(self.info.shape[:-1])

    @property
    def place(self) -> tuple[int, int]:
        return self.info.file, self.info.offset

    def extent(self, start: int, stop: int, rows: int) -> Extent:
        """Where the bytes lie that ``read`` gives."""
        row = self.info.bytes // max(rows, 1)
        return Extent(self.info.file, self.info.offset + start * row, (stop - start) * row)

    def read(self, start: int, stop: int, rows: int) -> Bytes:
        """The bytes of rows ``start`` to ``stop``, the tensor being ``rows`` equal ones; not to be
        written to.

        Raises:
            HeaderError: the file is shorter than it was, or cannot be read.
        """
        _, offset, length = self.extent(start, stop, rows)
        try:
            return np.frombuffer(self.source.read(offset, length), np.uint8)
        except HeaderError as error:
            raise HeaderError(shown(self.name), offset, error.problem, file=self.file) from error

    def damaged(self, index: int, columns: int, problem: str) -> SourceError:
        """What is wrong with element ``index`` where a row has so many columns."""
        row, column = divmod(index, max(columns, 1))
        return SourceError(
            f"{shown(self.name)}: element {index} (row {row}, column {column}) {problem}",
            hint="get the model again; one that holds such numbers is damaged",
        )

    def malformed(self, problem: str) -> HeaderError:
        """Of the tensor as a whole: its type or its shape."""
        return HeaderError(shown(self.name), self.info.offset, problem, file=self.file)
