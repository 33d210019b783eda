"""Knows no file and no sequence: tables that token n-grams index, and how their rows join streams.

DeepSeek, Conditional Memory via Scalable Lookup (https://github.com/deepseek-ai/Engram), in the
form of https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py: no convolution,
one value for all residual streams, a key for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from localrun.backends.torch.matrices.table import Table
from localrun.backends.torch.tensors import Linear
from localrun.errors import HeaderError
from localrun.releases.engram import Engram

# Stands for the class of a token that is part of no n-gram: one of an image, or before the text.
DEAD: Final = -1
_LONGEST: Final = 2**63 - 1
_SMALLEST: Final = 1e-6


class Hashes:
    """Rows of every table that tokens find, by the classes of the last ``ngram`` of them."""

    def __init__(self, constants: Engram, device: torch.device) -> None:
        """Raises HeaderError for constants whose products leave 63 bits."""
        _check(constants)

        def held(numbers: object) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=device)

        self.constants, self.ngram, self.pad = constants, constants.ngram, constants.pad_class
        self._heads = constants.heads
        self._classes = held(constants.classes)
        self._number = {layer: at for at, layer in enumerate(constants.layers)}
        self._multipliers = held(constants.multipliers)  # (layers, n)
        self._primes = held(constants.primes)  # (layers, (n - 1) * heads)
        self._offsets = held(constants.offsets)

    @property
    def nbytes(self) -> int:
        held = (self._classes, self._multipliers, self._primes, self._offsets)
        return sum(each.nbytes for each in held)

    def classes(self, tokens: Tensor, dead: Tensor | None = None) -> Tensor:
        """int64 ``[T]`` → int64 ``[T]``; ``dead``, bool ``[T]``, are those of images."""
        found = self._classes[tokens]
        return found if dead is None else found.masked_fill(dead, DEAD)

    def lookback(self, classes: Tensor) -> Tensor:
        """Classes of ``n - 1 + T`` tokens, the first of them before the text or the span, →
        ``[T, n]``: each token's own class, then those before it. Behind a dead one all are dead,
        and the class of padding stands for all of these."""
        near = classes.unfold(0, self.ngram, 1).flip(1)  # (T, n), the nearest first
        blocked = (near == DEAD).cumsum(1) > 0
        return near.masked_fill(blocked, self.pad)

    def rows(self, layer: int, near: Tensor) -> Tensor:
        """What ``lookback`` gave → rows of the layer's table, int64 ``[T, (n - 1) * heads]``, the
        2-grams' heads first."""
        number = self._number[layer]
        mixed = near * self._multipliers[number]  # below 2^63, so no sign
        found = []
        hashed = mixed[:, 0]
        for length in range(1, self.ngram):
            hashed = hashed ^ mixed[:, length]
            found.append(hashed)
        each = torch.stack(found, 1).repeat_interleave(self._heads, 1)
        return each % self._primes[number] + self._offsets[number]


def _check(constants: Engram) -> None:
    most = max((*constants.classes, constants.pad_class))
    for layer, factors in zip(constants.layers, constants.multipliers, strict=True):
        if any(not 0 <= factor * most <= _LONGEST for factor in factors):
            problem = f"of layer {layer}, times class {most}, do not fit into 63 bits"
            raise HeaderError("engram.multipliers", 0, problem)
    if any(prime < 1 for each in constants.primes for prime in each):
        raise HeaderError("engram.primes", 0, "hold one below 1")


@dataclass(frozen=True, slots=True)
class Memory:
    """The table of one layer and what weighs its rows. ``wkv`` gives a key for each of ``m``
    streams and one value, ``[(m + 1) * D, rows of a token * width]``; ``scale``, float32
    ``[m, D]``, is the product of the weights of both norms."""

    table: Table
    wkv: Linear
    scale: Tensor
    eps: float

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.wkv.nbytes + self.scale.nbytes

    def __call__(self, streams: Tensor, rows: Tensor, dead: Tensor | None = None) -> Tensor:
        """Streams ``[T, m, D]`` with what ``rows`` of the table, ``[T, K, width]``, add; tokens
        that are ``dead``, bool ``[T]``, get nothing."""
        keyed = self.wkv(rows.flatten(1).to(streams.dtype)).float()
        keyed = keyed.view(keyed.shape[0], -1, streams.shape[-1])  # (T, m + 1, D)
        x, keys, value = streams.float(), keyed[:, :-1], keyed[:, -1:]
        gate = self._gate(x, keys)  # (T, m, 1)
        if dead is not None:
            gate = gate.masked_fill(dead[:, None, None], 0.0)
        return (x + gate * value).to(streams.dtype)

    def _gate(self, x: Tensor, keys: Tensor) -> Tensor:
        def factor(of: Tensor) -> Tensor:
            return torch.rsqrt(of.square().mean(-1, keepdim=True) + self.eps)

        agreed = (x * self.scale * keys).sum(-1, keepdim=True)
        agreed = agreed * factor(x) * factor(keys) * x.shape[-1] ** -0.5
        root = agreed.abs().clamp(min=_SMALLEST).sqrt()
        return torch.sigmoid(torch.copysign(root, agreed))

    def close(self) -> None:
        self.wkv.close()
