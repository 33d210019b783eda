"""Knows no file but at load: an n-gram table in a device's own memory, decoded there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from localrun.backends.torch.matrices.loading import require_numbers, slabs
from localrun.backends.torch.matrices.table import (
    GROUPS,
    Later,
    Lookup,
    RowUse,
    form_of,
    wanted_rows,
)
from localrun.errors import EngineError
from localrun.formats.text import shown
from localrun.releases.stored.numbers import e8m0
from localrun.releases.stored.scales import GROUP
from localrun.releases.weights import Weight, columns, row_count

Decode = Callable[..., Tensor]
"""Rows of each part, uint8 ``[n, bytes]`` → float32 ``[n, width]``."""
_FLOATS: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# ``block_q8_0`` of ggml-common.h: a half float, then as many signed bytes.
_Q8_0: Final = 34


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """``parts`` are uint8 ``[rows, bytes]``. A row that is not there is found where the ids are
    looked at: on the host, as of every table."""

    name: str
    parts: tuple[Tensor, ...]
    decode: Decode
    dtype: torch.dtype
    use: RowUse = field(default_factory=RowUse)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def begin(self, ids: Tensor) -> Lookup:
        rows = self.parts[0].shape[0]
        self.use.rows += wanted_rows(ids, rows, self.name).size

        def look_up() -> Tensor:
            flat = ids.to(self.parts[0].device).reshape(-1)
            found = self.decode(*(part[flat] for part in self.parts)).to(self.dtype)
            return found.reshape(*ids.shape, found.shape[-1])

        return Later(look_up)

    def rows(self, ids: Tensor) -> Tensor:
        return self.begin(ids).rows()


def table_on_device(weight: Weight, device: torch.device, dtype: torch.dtype) -> DeviceTable:
    """Read whole, as it is stored, to the device.

    Raises:
        HeaderError: integers. SourceError: a code or a scale that stands for no number.
        EngineError: stored in a way that is decoded on the host alone.
    """
    require_numbers(weight, dtype)
    form = form_of(weight)
    decode = _decode(form.kind, device)
    if decode is None:
        raise EngineError(
            f"{shown(weight.name)}: tables of {weight.stored} are not decoded on a device",
            hint="keep it elsewhere: --engram ram or --engram disk",
        )
    parts: tuple[Tensor, ...] = ()
    for start, stop in slabs(weight, columns(weight)):
        found = [torch.tensor(piece) for piece in form.read(weight, start, stop)]
        if not parts:
            sizes = [(row_count(weight), piece.shape[1]) for piece in found]
            parts = tuple(torch.empty(size, dtype=torch.uint8, device=device) for size in sizes)
        for part, piece in zip(parts, found, strict=True):
            part[start:stop] = piece.to(device)
    return DeviceTable(weight.name, parts, decode, dtype)


def _decode(kind: str, device: torch.device) -> Decode | None:
    if kind == GROUPS:
        powers = torch.from_numpy(e8m0()).to(device)

        def in_groups(codes: Tensor, scales: Tensor) -> Tensor:
            numbers = codes.view(torch.float8_e4m3fn).float()
            wide = powers[scales.int()].repeat_interleave(GROUP, 1)
            return numbers * wide[:, : numbers.shape[1]]

        return in_groups
    if kind in _FLOATS:
        return lambda raw: raw.view(_FLOATS[kind]).float()
    return _eight_bits if kind == "Q8_0" else None


def _eight_bits(raw: Tensor) -> Tensor:
    blocks = raw.view(raw.shape[0], -1, _Q8_0)
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    return (scales * blocks[..., 2:].view(torch.int8).float()).flatten(1)
