"""Knows no release: e2m1 codes, two to a byte, times a power of two for each 32 of a row.

Of a byte the lower four bits come first. Bits are shifted into place as those of ``fp8``: first
those of each number to the upper half of its own byte, then to those of a wider float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from localrun.backends.torch.matrices.kernels import Kernels

GROUP: Final = 32
_LIFT: Final = 126  # 127 - 1: the difference of the exponents' biases
# Exponents up to here can take that in.
_LIFTED_MAX: Final = 254 - _LIFT
_SUBNORMAL: Final = 1 << 22  # 2 ** -127 in float32
# By type: its width as integers, how far bits are shifted, and which are a number's.
_BITS: Final = {
    torch.bfloat16: (torch.int16, 2, -0x7E40),
    torch.float32: (torch.int32, 18, -0x7E400000),
}


@dataclass(frozen=True, slots=True)
class Fours:
    """``codes`` uint8 ``[..., rows, columns / 2]``, ``exponents`` uint8 ``[..., rows, groups]``
    with a bias of 127. ``lifted``, of each matrix: none is too large to take the bias's difference
    in."""

    codes: Tensor
    exponents: Tensor
    lifted: list[bool]

    @property
    def rows(self) -> int:
        return self.codes.shape[-2]

    @property
    def columns(self) -> int:
        return self.codes.shape[-1] * 2

    @property
    def count(self) -> int:
        return self.codes.shape[0]

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.exponents.nbytes

    def one(self, number: int) -> Fours:
        flag = self.lifted[number : number + 1]
        return Fours(self.codes[number], self.exponents[number], flag)

    def scaled(self, number: int, largest: int) -> None:
        """``largest`` is that of one matrix's exponents."""
        self.lifted[number] = largest <= _LIFTED_MAX

    def decode(self, first: int, last: int, dtype: torch.dtype, kernels: Kernels) -> Tensor:
        """As ``Codes.decode``; every number is exact but those below the type's smallest."""
        whole, shift, mask = _BITS[dtype]
        codes = self.codes[first:last]  # (n, columns / 2)
        apart = kernels.room(0, self.device, torch.int16, *codes.shape).copy_(codes)
        lower = kernels.room(1, self.device, torch.int16, *codes.shape)
        torch.bitwise_left_shift(apart, 4, out=lower)
        apart.bitwise_left_shift_(8).bitwise_and_(-0x1000)
        apart.bitwise_or_(lower.bitwise_and_(0xF0))
        upper = apart.view(torch.int8)  # (n, columns), sign, exponent and mantissa on top
        bits = kernels.room(1, self.device, whole, *upper.shape).copy_(upper)
        numbers = bits.bitwise_left_shift_(shift).bitwise_and_(mask).view(dtype)
        scales = self._scales(first, last, numbers).to(dtype)
        numbers.view(*scales.shape, GROUP).mul_(scales[:, :, None])
        return numbers

    def _scales(self, first: int, last: int, numbers: Tensor) -> Tensor:
        """float32 (n, groups)."""
        exponents = self.exponents[first:last].to(torch.int32)
        if self.lifted[0]:
            exponents += _LIFT
        else:
            numbers.mul_(2.0**_LIFT)
        bits = exponents << 23
        return bits.masked_fill_(exponents == 0, _SUBNORMAL).view(torch.float32)

    def few(self, x: Tensor, kernels: Kernels) -> Tensor | None:
        return None


def fours_of(codes: Tensor, exponents: Tensor) -> Fours:
    """A stack; ``scaled`` says what its exponents are, once they are there."""
    return Fours(codes, exponents, [False] * codes.shape[0])
