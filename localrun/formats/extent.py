"""Knows no tensor: a stretch of bytes in one of a model's files."""

from __future__ import annotations

from typing import NamedTuple


class Extent(NamedTuple):
    """``length`` bytes from ``offset`` of a file, by its number as in ``TensorInfo.file``."""

    file: int
    offset: int
    length: int
