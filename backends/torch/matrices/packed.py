"""Knows no release: matrices in the blocks of a ggml type, multiplied by libggml on the CPU.

Its kernels round activations to eight bits first (Q8_0 or Q8_K), to BF16 where weights are that.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.matrices.dense import Dense, DenseBank
from localrun.backends.torch.matrices.fp4 import GROUP
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.ggml.matmul import Product, Threads
from localrun.ggml.weights import Weights
from localrun.releases.weights import Weight

# Products of so few tokens are kept: what they hold of activations is small, and making one takes
# as long as a small product. Of experts in places any number may be there at once.
_KEPT_TOKENS: Final = 8
_KEPT: Final = 6
# Of matrices of BF16 libggml's products are the faster ones up to so many tokens.
FEW: Final = 8
_Key = tuple[int, int, bool]


class _Call:
    """A product with its memory as tensors: to make these anew each time costs as much as to
    compute a small product."""

    def __init__(self, product: Product, pairs: bool) -> None:
        self._product = product
        self._activations = torch.from_numpy(product.activations)
        self._outputs = torch.from_numpy(product.outputs)
        self._chosen = None if product.chosen is None else torch.from_numpy(product.chosen)
        self._halves = None
        if pairs:
            shape = *self._activations.shape[:-1], -1, 2, GROUP // 2
            self._halves = self._activations.view(shape).transpose(-1, -2)

    def __call__(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        """Outputs, in the type of ``x``."""
        if self._chosen is not None and chosen is not None:
            self._chosen.copy_(chosen)
        if self._halves is None:
            self._activations.copy_(x)
        else:
            self._halves.copy_(x.reshape(*x.shape[:-1], -1, GROUP // 2, 2))
        self._product.run()
        made = self._outputs.to(x.dtype, copy=True)
        # libggml rounds a NaN to a number; any makes the sum one.
        if math.isnan(self._activations.sum()):
            made.masked_fill_(self._activations.isnan().any(-1, keepdim=True), math.nan)
        return made

    def close(self) -> None:
        self._product.close()


@dataclass(slots=True)
class Products:
    """Products by ``weights``, by tokens, choices and whether each choice has its activations.

    ``pairs``: codes of MXFP4 lie as a release has them, two neighbours a byte, where libggml takes
    the lower halves of 16 bytes for the first 16 numbers. The activations of each group are put
    into the order of the codes instead: a group's scale and its sum, of integers, stay the same.
    Kernels of the library's plain layout add four integers at a time as floats, so there the last
    digit may be another.
    """

    weights: Weights
    kernels: Kernels
    pairs: bool = False
    _pool: Threads | None = None
    _kept: OrderedDict[_Key, _Call] = field(default_factory=OrderedDict)

    def _product(self, x: Tensor, tokens: int, chosen: Tensor | None, own: bool) -> Tensor:
        choices = 0 if chosen is None else chosen.shape[1]
        pool, key = self.kernels.pool, (tokens, choices, own)
        if pool is not self._pool:
            self._drop()
            self._pool = pool
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept(x, chosen)
        product = Product(self.weights, pool, tokens, choices=choices, own_activations=own)
        call = _Call(product, self.pairs)
        if tokens > _KEPT_TOKENS:
            with closing(call):
                return call(x, chosen)
        self._kept[key] = call
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)[1].close()
        return call(x, chosen)

    def by(self, x: Tensor) -> Tensor:
        """``[..., columns]`` → ``[..., rows]``, in its type."""
        weights = self.weights
        shape = *x.shape[:-1], weights.rows
        flat = x.reshape(-1, weights.columns)
        if not flat.shape[0]:
            return x.new_empty(shape)
        return self._product(flat, flat.shape[0], None, own=False).reshape(shape)

    def by_chosen(self, x: Tensor, chosen: Tensor) -> Tensor:
        """As ``Bank.__call__``."""
        tokens, choices = chosen.shape
        if not tokens or not choices:
            return x.new_empty((tokens, choices, self.weights.rows))
        own = x.ndim == 3
        return self._product(x if own else x[:, None], tokens, chosen, own)

    def close(self) -> None:
        """With the weights. Again does nothing."""
        self._drop()
        self.weights.close()

    def _drop(self) -> None:
        for call in self._kept.values():
            call.close()
        self._kept.clear()


@dataclass(frozen=True, slots=True)
class Packed:
    """``source`` is read again for ``weight`` alone, so its file must be open then."""

    products: Products
    source: Weight
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.products.weights.rows

    @property
    def columns(self) -> int:
        return self.products.weights.columns

    @property
    def nbytes(self) -> int:
        return self.products.weights.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.products.by(x)

    def weight(self) -> Tensor:
        return _decoded(self.source, self.rows, self.dtype)

    def close(self) -> None:
        self.products.close()


@dataclass(frozen=True, slots=True)
class PackedBank:
    """The same of experts, one of ``sources`` each."""

    products: Products
    sources: tuple[Weight, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return len(self.sources)

    @property
    def nbytes(self) -> int:
        return self.products.weights.nbytes

    @property
    def expert_nbytes(self) -> int:
        return self.nbytes // self.count

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        return self.products.by_chosen(x, chosen)

    def weight(self, expert: int) -> Tensor:
        return _decoded(self.sources[expert], self.products.weights.rows, self.dtype)

    def close(self) -> None:
        self.products.close()


@dataclass(frozen=True, slots=True)
class Brain:
    """BF16 that both libraries read where it lies: libggml for few tokens, torch for many."""

    dense: Dense
    products: Products

    @property
    def rows(self) -> int:
        return self.dense.rows

    @property
    def columns(self) -> int:
        return self.dense.columns

    @property
    def nbytes(self) -> int:
        return self.dense.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.products.by(x) if x.numel() <= FEW * self.columns else self.dense(x)

    def weight(self) -> Tensor:
        return self.dense.numbers

    def close(self) -> None:
        self.products.close()


@dataclass(frozen=True, slots=True)
class BrainBank:
    """The same of experts: ``few`` and ``many`` are of the same memory."""

    few: PackedBank
    many: DenseBank

    @property
    def count(self) -> int:
        return self.many.count

    @property
    def nbytes(self) -> int:
        return self.many.nbytes

    @property
    def expert_nbytes(self) -> int:
        return self.many.expert_nbytes

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        return (self.few if chosen.shape[0] <= FEW else self.many)(x, chosen)

    def weight(self, expert: int) -> Tensor:
        return self.many.weight(expert)

    def close(self) -> None:
        self.few.close()


def brain(numbers: Tensor, kernels: Kernels) -> Brain:
    """Of BF16 ``[rows, columns]`` on the CPU."""
    return Brain(Dense(numbers), _shared(numbers, 0, kernels))


def brain_bank(numbers: Tensor, kernels: Kernels) -> BrainBank:
    """Of BF16 ``[experts, rows, columns]`` on the CPU."""
    products = _shared(numbers, numbers.shape[0], kernels)
    return BrainBank(PackedBank(products, (), numbers.dtype), DenseBank(numbers))


def _shared(numbers: Tensor, experts: int, kernels: Kernels) -> Products:
    assert not numbers.data_ptr() % 64, "torch's own memory begins on a cache line"
    memory: NDArray[np.uint8] = numbers.view(torch.uint8).numpy().reshape(-1)
    rows, columns = numbers.shape[-2:]
    return Products(Weights("BF16", rows, columns, memory, experts=experts, shared=True), kernels)


def _decoded(source: Weight, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(source.rows(0, rows))).to(dtype)
