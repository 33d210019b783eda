"""Knows no matrix: what products of stored weights share, memory to decode into and threads."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor

from localrun.errors import UsageError
from localrun.ggml.matmul import MAX_THREADS, Threads

# Numbers that are decoded at once: they should stay in a core's cache, or fill an accelerator.
_TILE: Final = {"cpu": 1 << 20}
_TILE_ELSEWHERE: Final = 1 << 24


class _Closes(Protocol):
    def close(self) -> None: ...


_Made = TypeVar("_Made", bound=_Closes)


class Kernels:
    """``threads`` are of libggml's products, 0 where none are used. A model has one of these, and
    one thread computes with it at a time. Close it after the model's matrices.

    Raises:
        UsageError: a number of threads that libggml cannot have.
    """

    def __init__(self, threads: int = 0) -> None:
        self._pool: Threads | None = None
        self._end: Callable[[], object] | None = None
        self.set_threads(threads)
        self._memory: dict[tuple[torch.device, int], Tensor] = {}
        self._once: dict[Hashable, Any] = {}

    def set_threads(self, count: int) -> None:
        """From the next product on. A model that was built with 0 goes on without libggml."""
        if not 0 <= count <= MAX_THREADS:
            raise UsageError(f"{count} threads: from 1 to {MAX_THREADS} can compute, 0 is none")
        self.threads = count

    @property
    def pool(self) -> Threads:
        """Started by the first product, and again where the number of threads has changed."""
        if self._pool is None or self._pool.count != self.threads:
            self._end_threads()
            self._pool = Threads(self.threads)
            self._end = weakref.finalize(self, self._pool.close)
        return self._pool

    def room(self, at: int, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
        """Uninitialised memory, the same at every call with the same ``at``: fresh memory of a
        megabyte costs more than to decode into it."""
        nbytes = dtype.itemsize
        for size in shape:
            nbytes *= size
        held = self._memory.get((device, at))
        if held is None or held.numel() < nbytes:
            held = torch.empty(nbytes, dtype=torch.uint8, device=device)
            self._memory[device, at] = held
        return held[:nbytes].view(dtype).view(shape)

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What all matrices share, made when it is first asked for and closed with the rest;
        ``key`` holds its type."""
        if key not in self._once:
            self._once[key] = make()
        found: _Made = self._once[key]
        return found

    def close(self) -> None:
        """End the threads, give the memory back. Again does nothing."""
        for made in self._once.values():
            made.close()
        self._once, self._memory = {}, {}
        self._end_threads()

    def _end_threads(self) -> None:
        end, self._end, self._pool = self._end, None, None
        if end is not None:
            end()


def tile_rows(columns: int, device: torch.device) -> int:
    """Rows that are decoded at once."""
    return max(1, _TILE.get(device.type, _TILE_ELSEWHERE) // max(columns, 1))
