"""Knows no n-gram: rows of a table that is too large for a device, in the memory of the host.

Tables lie there as they are stored; what is looked up goes to the device. ``disk_table`` has those
that stay in their file, ``device_table`` those that a device holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.tiers.table_rows import in_groups
from localrun.backends.torch.matrices.loading import fp8_codes, require_numbers, slabs
from localrun.errors import EngineError
from localrun.formats.text import shown
from localrun.ggml.quantize import dequantize
from localrun.ggml.types import WEIGHT_TYPES
from localrun.releases.engram_rows import NativeRows
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.stored.numbers import FLOATS, e8m0, floats, looked_up
from localrun.releases.stored.scales import GROUP
from localrun.releases.weights import Bytes, Floats, Weight, columns, row_count

Ids = NDArray[np.int64]
Read = Callable[[Weight, int, int], tuple[NDArray[Any], ...]]
"""Stored rows of each part of a table."""
Decode = Callable[..., Floats]
"""The stored rows of each part → numbers ``[n, width]``."""

GROUPS: Final = "e4m3 in groups"
"""Codes and scales, a scale for 32."""
NUMBERS: Final = "numbers"
"""Decoded already."""


@dataclass(slots=True)
class RowUse:
    """Since the load, as ``model.TableUse`` tells it. All but ``rows`` are of tables on disk."""

    rows: int = 0
    distinct: int = 0
    hits: int = 0
    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Lookup(Protocol):
    """Rows on their way to whoever asked for them."""

    def advance(self) -> None:
        """Go on with what needs no waiting.

        Raises:
            DiskReadError: a read failed.
        """
        ...

    def rows(self) -> Tensor:
        """What was asked for as numbers, once, waiting for what is not there yet.

        Raises:
            DiskReadError: they cannot be read. SourceError: they hold what is no number.
        """
        ...


class Table(Protocol):
    """Rows of an n-gram table, wherever it lies."""

    @property
    def nbytes(self) -> int:
        """In memory, of the host or of a device."""
        ...

    @property
    def use(self) -> RowUse: ...

    def begin(self, ids: Tensor) -> Lookup:
        """Look int64 ``[...]`` up: ``[..., width]``, in the type that the model computes in. What
        has to be read is on its way from here on.

        Raises:
            EngineError: a row that is not there. DiskReadError: nothing can be read.
        """
        ...

    def rows(self, ids: Tensor) -> Tensor:
        """The same, at once."""
        ...


@dataclass(frozen=True, slots=True)
class Later:
    """A look-up that needs nothing before its time."""

    look_up: Callable[[], Tensor]

    def advance(self) -> None:
        """There is nothing to wait for."""

    def rows(self) -> Tensor:
        return self.look_up()


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """``parts`` are arrays of as many rows, which ``decode`` makes numbers of."""

    name: str
    parts: tuple[NDArray[Any], ...]
    width: int
    decode: Decode
    device: torch.device
    dtype: torch.dtype
    use: RowUse = field(default_factory=RowUse)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def begin(self, ids: Tensor) -> Lookup:
        wanted = wanted_rows(ids, self.parts[0].shape[0], self.name)
        self.use.rows += wanted.size

        def look_up() -> Tensor:
            found = self.decode(*(part[wanted] for part in self.parts))
            return given(torch.from_numpy(found).to(self.dtype), ids, self.device)

        return Later(look_up)

    def rows(self, ids: Tensor) -> Tensor:
        return self.begin(ids).rows()


@dataclass(frozen=True, slots=True)
class Form:
    """How a table lies in memory: what is read of each row, and how that becomes numbers."""

    kind: str
    read: Read
    decode: Decode


def form_of(weight: Weight) -> Form:
    """As it is stored, or ``numbers`` where it is stored in a way of no table's."""
    width, kind = columns(weight), weight.stored
    if isinstance(weight, NativeRows):
        return Form(GROUPS, _native, _rows_of_32)
    if isinstance(weight, Scaled) and in_groups(weight):
        return Form(GROUPS, _scaled, _rows_of_32)
    if kind in FLOATS:
        return Form(kind, _raw, _plain(kind, width))
    if kind in WEIGHT_TYPES and weight.blocks(kind, 0, weight.step) is not None:
        return Form(kind, _raw, _ggml(kind, width))
    return Form(NUMBERS, _numbers, _same)


def table_in_memory(weight: Weight, device: torch.device, dtype: torch.dtype) -> MemoryTable:
    """Read whole, as ``form_of`` says.

    Raises:
        HeaderError: integers. SourceError: a code or a scale that stands for no number.
    """
    require_numbers(weight, dtype)
    width, form = columns(weight), form_of(weight)
    arrays: tuple[NDArray[Any], ...] = ()
    for start, stop in slabs(weight, width):
        found = form.read(weight, start, stop)
        if not arrays:
            arrays = tuple(np.empty((row_count(weight), p.shape[1]), p.dtype) for p in found)
        for array, piece in zip(arrays, found, strict=True):
            array[start:stop] = piece
    return MemoryTable(weight.name, arrays, width, form.decode, device, dtype)


def _native(weight: Weight, start: int, stop: int) -> tuple[Bytes, ...]:
    assert isinstance(weight, NativeRows)
    return weight.codes(start, stop)


def _scaled(weight: Weight, start: int, stop: int) -> tuple[Bytes, ...]:
    assert isinstance(weight, Scaled)
    # The scales are looked at as numbers first: one of them may be none.
    weight.scales.read(start, stop)
    scales = weight.scales.part.read(start, stop, weight.scales.total)
    return fp8_codes(weight, start, stop), scales.reshape(stop - start, -1)


def _raw(weight: Weight, start: int, stop: int) -> tuple[Bytes, ...]:
    found = weight.blocks(weight.stored, start, stop)
    assert found is not None
    return (found.view(np.uint8).reshape(stop - start, -1),)


def _numbers(weight: Weight, start: int, stop: int) -> tuple[Floats, ...]:
    return (weight.rows(start, stop),)


def _rows_of_32(codes: Bytes, scales: Bytes) -> Floats:
    numbers = looked_up(codes.reshape(-1), "e4m3").reshape(codes.shape)
    numbers *= np.repeat(e8m0()[scales], GROUP, axis=1)[:, : codes.shape[1]]
    return numbers


def _ggml(kind: str, width: int) -> Decode:
    def decode(raw: Bytes) -> Floats:
        return dequantize(kind, raw, width)

    return decode


def _plain(kind: str, width: int) -> Decode:
    def decode(raw: Bytes) -> Floats:
        return floats(raw.reshape(-1), kind).reshape(raw.shape[0], width)

    return decode


def _same(numbers: Floats) -> Floats:
    return numbers


def wanted_rows(ids: Tensor, rows: int, name: str) -> Ids:
    """Flat, on the host. Raises EngineError."""
    wanted: Ids = ids.to("cpu", torch.int64).reshape(-1).numpy()
    if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < rows:
        raise EngineError(
            f"{shown(name)}: rows {wanted.min()} to {wanted.max()} of {rows} were looked up",
            hint="the tables do not belong to this tokenizer or config: get the whole release",
        )
    return wanted


def given(
    found: Tensor, ids: Tensor, device: torch.device, places: NDArray[np.intp] | None = None
) -> Tensor:
    """Numbers as a model takes them: row ``places[i]`` of ``found`` for the ``i``-th of ``ids``."""
    made = found.to(device)
    if places is not None:
        made = made.index_select(0, torch.from_numpy(places).to(device))
    return made.reshape(*ids.shape, found.shape[1])
