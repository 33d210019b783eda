"""Knows no names: rows of a weight that lie together, as a weight of their own."""

from __future__ import annotations

from dataclasses import dataclass

from localrun.quantize.weights import Bytes, Floats, Weight, row_count


@dataclass(frozen=True)
class Portion:
    """As many rows of ``source`` as ``shape`` has, from row ``first`` on, one of its steps."""

    source: Weight
    shape: tuple[int, ...]
    first: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def stored(self) -> str:
        return self.source.stored

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes * row_count(self) // max(row_count(self.source), 1)

    @property
    def place(self) -> tuple[int, int]:
        file, offset = self.source.place
        before = self.source.read_bytes * self.first // max(row_count(self.source), 1)
        return file, offset + before

    @property
    def step(self) -> int:
        return self.source.step

    def rows(self, start: int, stop: int) -> Floats:
        return self.source.rows(self.first + start, self.first + stop)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return self.source.blocks(type, self.first + start, self.first + stop)
