"""Knows no way that rows take: a table whose rows are held against those in its file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from localrun.backends.torch.matrices.disk_table import read_rows
from localrun.backends.torch.matrices.table import Lookup, RowUse, Table, given, wanted_rows
from localrun.errors import EngineError
from localrun.formats.text import shown
from localrun.releases.weights import Weight, row_count


@dataclass(frozen=True, slots=True)
class CheckedTable:
    """Gives what ``table`` gives, once each bit of it is that of ``weight`` as it is read now."""

    table: Table
    weight: Weight

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    @property
    def use(self) -> RowUse:
        return self.table.use

    def begin(self, ids: Tensor) -> Lookup:
        return _Checked(self, ids)

    def rows(self, ids: Tensor) -> Tensor:
        return self.begin(ids).rows()


class _Checked:
    def __init__(self, table: CheckedTable, ids: Tensor) -> None:
        self._weight, self._ids = table.weight, ids
        self._inner = table.table.begin(ids)

    def advance(self) -> None:
        self._inner.advance()

    def rows(self) -> Tensor:
        """Raises EngineError with the first row that differs."""
        found, weight = self._inner.rows(), self._weight
        wanted = wanted_rows(self._ids, row_count(weight), weight.name)
        once, places = np.unique(wanted, return_inverse=True)
        numbers = torch.from_numpy(read_rows(weight, once)).to(found.dtype)
        read = given(numbers, self._ids, found.device, places)
        same = found.flatten(0, -2).view(torch.uint8) == read.flatten(0, -2).view(torch.uint8)
        differ = (~same.all(-1)).nonzero()
        if differ.numel():
            raise EngineError(
                f"{shown(weight.name)}: row {wanted[int(differ[0])]} is not what the file holds",
                hint="what keeps or reads rows ahead is at fault; please report it",
            )
        return found
