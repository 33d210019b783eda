"""Knows no layer: one row for every token of a sequence, or for every few of them.

Rows may lie in another memory than the one they are computed in: as they are stored they go there,
and those that are looked at come back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localrun.backends.torch.caches.formats import RowFormat, row_bytes


class Rows:
    """Row ``j`` is of tokens ``j * ratio`` to ``(j + 1) * ratio - 1``; there is room for those of
    ``capacity`` tokens. Rows are only ever added, so any length can be cut to. They lie in
    ``home``, and are packed and unpacked on ``device``."""

    def __init__(
        self,
        capacity: int,
        format: RowFormat,
        device: torch.device,
        ratio: int = 1,
        home: torch.device | None = None,
    ) -> None:
        self.format, self.ratio, self._capacity = format, ratio, capacity
        self._device, self._home = device, home or device
        # Pages of a host's memory that nobody wrote to take none.
        self._rows = torch.empty(
            (max(1, capacity // ratio), format.cells), dtype=format.dtype, device=self._home
        )
        # What ``pick`` gives for no row has to be a number.
        self._rows[0] = 0

    @property
    def nbytes(self) -> int:
        return self._rows.shape[0] * row_bytes(self.format)

    def count(self, tokens: int) -> int:
        """Rows of so many tokens."""
        return tokens // self.ratio

    def begin(self) -> None:
        """Nothing is ever overwritten that a shorter sequence has."""

    def write(self, first: int, rows: Tensor) -> None:
        """Rows ``[n, width]`` from row ``first`` on."""
        self._rows[first : first + rows.shape[0]] = self.format.pack(rows)

    def read(self, first: int, last: int) -> Tensor:
        """Rows ``[last - first, width]``, which may lie in the cache itself."""
        return self.format.unpack(self._rows[first:last].to(self._device))

    def pick(self, indices: Tensor) -> Tensor:
        """Rows by number: int64 ``[...]`` → ``[..., width]``. Numbers below 0 give the first."""
        flat = indices.reshape(-1).clamp(min=0).to(self._home)
        found = self.format.unpack(self._rows.index_select(0, flat).to(self._device))
        return found.reshape(*indices.shape, self.format.width)

    def covers(self, length: int, tokens: int) -> bool:
        return True

    def cut(self, length: int, tokens: int) -> None:
        """Rows behind the length are written again before they are read."""

    def copy(self, tokens: int) -> Rows:
        made = Rows(self._capacity, self.format, self._device, self.ratio, self._home)
        count = self.count(tokens)
        made._rows[:count] = self._rows[:count]
        return made

    def clear(self) -> None:
        """As ``cut``."""

    def state(self, tokens: int) -> Tensor:
        return self._rows[: self.count(tokens)]

    def load(self, state: Tensor, tokens: int) -> None:
        count = self.count(tokens)
        if state.dtype != self._rows.dtype or state.shape != (count, self.format.cells):
            raise ValueError(f"{tuple(state.shape)} rows of {state.dtype} are not of this model")
        self._rows[:count] = state
