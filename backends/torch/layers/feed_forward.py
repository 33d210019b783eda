"""Knows no routing: gated feed-forward networks, of one token's own or of its experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from localrun.backends.torch.tensors import Bank, Linear


def swiglu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """``silu(gate) * up`` in float32; ``limit`` clamps the gate from above and ``up`` both ways
    (Shazeer, arXiv 2002.05202)."""
    gate, up = gate.float(), up.float()
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return functional.silu(gate) * up


@dataclass(frozen=True, slots=True)
class Gated:
    """``w2(silu(w1 x) * w3 x)``: ``[..., D]`` → ``[..., D]``."""

    w1: Linear
    w3: Linear
    w2: Linear
    limit: float | None = None

    @property
    def nbytes(self) -> int:
        return self.w1.nbytes + self.w3.nbytes + self.w2.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x), self.w3(x), self.limit).to(x.dtype))

    def close(self) -> None:
        for each in (self.w1, self.w3, self.w2):
            each.close()


@dataclass(frozen=True, slots=True)
class Experts:
    """The same of every token's chosen experts, weighted and added. Weights enter before the last
    product, or behind it where they are ``late``: then they change nothing that is rounded."""

    w1: Bank
    w3: Bank
    w2: Bank
    limit: float | None = None
    late: bool = False

    @property
    def nbytes(self) -> int:
        return self.w1.nbytes + self.w3.nbytes + self.w2.nbytes

    @property
    def count(self) -> int:
        return self.w1.count

    @property
    def expert_nbytes(self) -> int:
        """What a token reads for each expert that it chooses."""
        return self.nbytes // self.count

    def begin(
        self, x: Tensor, chosen: Tensor, weights: Tensor, tokens: Tensor
    ) -> Callable[[], Tensor]:
        """As ``__call__``, of tokens with the ids int64 ``[T]``, when the result is called for:
        where experts must be read first, something else may be computed before it."""
        return partial(self, x, chosen, weights)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """``[T, D]``, int64 ``[T, K]``, float32 ``[T, K]`` → float32 ``[T, D]``; sums are
        float32."""
        return self.each(x, chosen, weights).sum(1, dtype=torch.float32)

    def each(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What every choice adds: ``[T, K, D]``."""
        inner = swiglu(self.w1(x, chosen), self.w3(x, chosen), self.limit)
        if self.late:
            return self.w2(inner.to(x.dtype), chosen) * weights[..., None]
        return self.w2((inner * weights[..., None]).to(x.dtype), chosen)

    def close(self) -> None:
        for each in (self.w1, self.w3, self.w2):
            each.close()
