"""Knows no bytes of a file: the tensors that a checkpoint of a given configuration holds.

A layout is what a header would say, written from config.json alone. Experts are one entry with
``copies``, so that a model of 250,000 tensors is a few thousand values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.formats.header import TensorType


@dataclass(frozen=True, slots=True)
class LayoutTensor:
    """One tensor, or ``copies`` alike whose names have their number in place of ``{e}``.

    ``name`` is the release's own (safetensors); ``shape`` is row-major.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    copies: int = 1

    @property
    def elements(self) -> int:
        """Of one copy."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    @property
    def bytes(self) -> int:
        """Of one copy; rows are padded to whole blocks."""
        if not self.shape:
            return self.type.block_bytes
        if not self.shape[-1]:
            return 0
        blocks = -(-self.shape[-1] // self.type.block_elements)
        return self.elements // self.shape[-1] * blocks * self.type.block_bytes

    def names(self) -> Iterator[str]:
        """The names of all copies."""
        if "{e}" not in self.name:
            yield self.name
            return
        for number in range(self.copies):
            yield self.name.replace("{e}", str(number))
