"""Knows no codes: products of a few tokens by tiles of float16, which libggml adds in float32.

A tile is decoded into memory that all of a model share. Of its rows each ``height`` are a line,
which has activations of its own: to libggml lines are experts, all of them chosen.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from localrun.backends.torch.matrices.kernels import Kernels, tile_rows
from localrun.backends.torch.matrices.packed import Products
from localrun.ggml.weights import Weights

_CPU: Final = torch.device("cpu")
_ROOM: Final = 2  # beside those that codes are decoded into
# ARM's kernel adds float16 as float16 (ggml_vec_dot_f16 in ggml's simd-mappings.h).
_EXACT: Final = platform.machine().lower() in {"x86_64", "amd64"}


def multiplied(kernels: Kernels) -> bool:
    """Whether libggml may be used, and adds exactly enough."""
    return _EXACT and kernels.threads > 0


@dataclass(frozen=True, slots=True)
class Lines:
    """``tile`` float16 ``[lines * height, columns]``: write numbers there, then multiply."""

    tile: Tensor
    chosen: Tensor
    products: Products

    def __call__(self, x: Tensor) -> Tensor:
        """float32 ``[t, lines, columns]`` → ``[t, lines * height]``."""
        chosen = self.chosen.expand(x.shape[0], -1)
        return self.products.by_chosen(x, chosen).reshape(x.shape[0], -1)

    def close(self) -> None:
        """Again does nothing."""
        self.products.close()


def lines_of(kernels: Kernels, count: int, height: int, columns: int) -> Lines:
    """The same at every call with the same numbers; what another wrote may lie in it."""

    def made() -> Lines:
        numbers = count * height * columns
        room = kernels.room(_ROOM, _CPU, torch.float16, max(numbers, tile_rows(1, _CPU)))[:numbers]
        assert not room.data_ptr() % 64, "torch's own memory begins on a cache line"
        memory = room.view(torch.uint8).numpy()
        weights = Weights("F16", height, columns, memory, experts=count, shared=True)
        tile = room.view(count * height, columns)
        chosen = torch.from_numpy(np.arange(count)[None])
        return Lines(tile, chosen, Products(weights, kernels))

    return kernels.once((Lines, count, height, columns), made)
