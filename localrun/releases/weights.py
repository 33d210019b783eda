"""Knows no format: a matrix of a model, read a few rows at a time however it is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localrun.formats.extent import Extent

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Weight(Protocol):
    """A tensor of a model, its dimensions but the last counted as rows.

    A vector is one row, a scalar one row of one column. ``rows`` and ``blocks`` are called from
    several threads at once, with ``start`` a multiple of ``step``, and check what they read.
    """

    @property
    def name(self) -> str:
        """Of the tensor in the source, for errors; of the first one where it is made of several."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major, as the numbers are meant: packed codes are unpacked."""
        ...

    @property
    def stored(self) -> str:
        """How the numbers are stored: a type of ``formats.types``, or FP8 or FP4 with scales."""
        ...

    @property
    def read_bytes(self) -> int:
        """What is read of the source for all rows, scales too."""
        ...

    @property
    def place(self) -> tuple[int, int]:
        """(file, offset) of the first byte: what lies together is read together."""
        ...

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        """All that is read of the source for these rows: of codes and of scales. Nothing is read
        to tell."""
        ...

    @property
    def step(self) -> int:
        """Rows that belong together: a part read begins at a multiple of it."""
        ...

    def rows(self, start: int, stop: int) -> Floats:
        """Rows ``[stop - start, columns]``, all finite.

        Raises:
            SourceError: a number or a scale that is not finite, with the tensor and its index.
            HeaderError: the file is shorter than it was.
        """
        ...

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        """The same rows as blocks of a type, ``[stop - start, bytes of a row]``, moved bit by bit;
        None where that type cannot hold them as they are.

        Raises:
            As ``rows``.
        """
        ...


def columns(weight: Weight) -> int:
    return weight.shape[-1] if weight.shape else 1


def row_count(weight: Weight) -> int:
    return math.prod(weight.shape[:-1])


def elements(weight: Weight) -> int:
    return math.prod(weight.shape)


def bits_per_weight(weight: Weight) -> float:
    return 8 * weight.read_bytes / max(elements(weight), 1)


@dataclass(frozen=True)
class Slab:
    """Some rows of a weight on their way to every output that wants them, decoded at most once."""

    weight: Weight
    start: int
    stop: int

    @cached_property
    def numbers(self) -> Floats:
        return self.weight.rows(self.start, self.stop)

    def blocks(self, type: str) -> Bytes | None:
        return self.weight.blocks(type, self.start, self.stop)
