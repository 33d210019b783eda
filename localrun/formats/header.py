"""Knows neither GGUF nor safetensors: the values both readers produce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Scalar = str | int | float | bool
MetadataValue = Scalar | tuple[Scalar, ...]
Format = Literal["gguf", "safetensors"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """How elements lie in a block: ``Q4_K`` packs 256 elements in 144 bytes."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_elements


class TensorInfo(NamedTuple):
    """One tensor: shape in row-major order (outermost first), offset from the file's start.

    GGUF stores dimensions innermost first; the reader turns them round so that both formats read
    alike. ``file`` is the index of the shard in ``Header.files``. A named tuple, because a header
    may hold 100,000 and a frozen dataclass takes longer to make.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    bytes: int
    file: int = 0

    @property
    def elements(self) -> int:
        count = 1
        for dim in self.shape:
            count *= dim
        return count


@dataclass(frozen=True, slots=True)
class Header:
    """What a model's files say of themselves before any weight is read.

    ``files`` are the shard names in order; ``header_bytes`` is how much of them was parsed.
    ``metadata`` is GGUF's key-value table, or the ``__metadata__`` strings of safetensors.
    """

    format: Format
    files: tuple[str, ...]
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    version: int = 0
    header_bytes: int = 0

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)
