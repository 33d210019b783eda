"""Knows no release: matrices of one byte a number, e4m3 or integers, times scales of blocks.

A code of e4m3 has its bits in the same order as wider floats, so shifting them into place decodes
it but for a power of two, that of the difference of the exponents' biases; what is subnormal in
e4m3 is subnormal there. That power is multiplied in before any product: kernels of products take
subnormal BF16 and float32 for zero, and none takes subnormal float16 so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.matrices.kernels import Kernels, tile_rows

_LIFT: Final = 2.0**120  # 2 ** (127 - 7): float32 and BF16 have float32's bias
_HALF_LIFT: Final = 2.0**8  # 2 ** (15 - 7)
# Of float32 all scales below this can take the power in.
_LIFTED_MAX: Final = 2.0**7
# For so few rows of activations float16's kernel is the fastest on a CPU that has no other.
_FEW: Final = 3
_LINE_MIN: Final = 16
_HALF_MAX: Final = 60000.0
_LARGEST: Final = 448.0


@dataclass(frozen=True, slots=True)
class Bytes:
    """``codes`` uint8 ``[..., rows, columns]``; ``scales`` float32 ``[..., lines, across]``, each
    for ``height`` rows and ``width`` columns, the last ones for what is left. ``signed``: codes are
    integers, not e4m3. Of each matrix, ``powers``: all scales are powers of two, so BF16 holds
    every number; ``lifted``: all are small enough to be multiplied by the power first."""

    codes: Tensor
    scales: Tensor
    height: int
    width: int
    signed: bool
    powers: list[bool]
    lifted: list[bool]

    @property
    def rows(self) -> int:
        return self.codes.shape[-2]

    @property
    def columns(self) -> int:
        return self.codes.shape[-1]

    @property
    def count(self) -> int:
        return self.codes.shape[0]

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def one(self, number: int) -> Bytes:
        return Bytes(
            self.codes[number],
            self.scales[number],
            self.height,
            self.width,
            self.signed,
            self.powers[number : number + 1],
            self.lifted[number : number + 1],
        )

    def scaled(self, number: int, scales: NDArray[np.float32]) -> None:
        """``scales`` are those of one matrix; what they allow is looked at once."""
        mantissas, _ = np.frexp(scales)
        self.powers[number] = bool((mantissas == 0.5).all())
        self.lifted[number] = bool((np.abs(scales) < _LIFTED_MAX).all())

    def decode(self, first: int, last: int, dtype: torch.dtype, kernels: Kernels) -> Tensor:
        """As ``Codes.decode``: each code times its scale to the nearest float32, and that to the
        nearest BF16."""
        codes, narrow = self.codes[first:last].view(torch.int8), torch.bfloat16
        if dtype == narrow and self.powers[0] and not self.signed:
            bits = kernels.room(0, self.device, torch.int16, *codes.shape).copy_(codes)
            numbers = bits.bitwise_left_shift_(4).bitwise_and_(-0x7810).view(narrow)
            return self._scaled(numbers, first, last)
        if self.signed:
            room = kernels.room(0, self.device, torch.float32, *codes.shape)
            numbers = self._scaled(room.copy_(codes), first, last)
        else:
            bits = kernels.room(0, self.device, torch.int32, *codes.shape).copy_(codes)
            bits.bitwise_left_shift_(20).bitwise_and_(-0x78100000)
            numbers = self._scaled(bits.view(torch.float32), first, last)
        if dtype == torch.float32:
            return numbers
        return kernels.room(1, self.device, dtype, *codes.shape).copy_(numbers)

    def _scaled(self, numbers: Tensor, first: int, last: int) -> Tensor:
        """In place: (n, columns)."""
        line, end = first // self.height, (last - 1) // self.height + 1
        scales = self.scales[line:end]  # (lines, across)
        if not self.signed:
            if self.lifted[0]:
                scales = scales * _LIFT
            else:
                numbers.mul_(_LIFT)
        scales = scales.to(numbers.dtype)
        if end - line > 1:
            scales = scales.repeat_interleave(self.height, 0)
            scales = scales[first - line * self.height :][: last - first]
        if self.scales.shape[-1] * self.width == self.columns:
            numbers.view(last - first, -1, self.width).mul_(scales[:, :, None])
        else:
            numbers.mul_(self._wide(scales))
        return numbers

    def _wide(self, scales: Tensor) -> Tensor:
        """(lines, across) → (lines, columns)."""
        width = min(self.width, self.columns)
        return scales.repeat_interleave(width, 1)[:, : self.columns]

    def few(self, x: Tensor, kernels: Kernels) -> Tensor | None:
        """As ``Codes.few``: activations take the scales of each line of blocks, and the largest of
        them becomes 1; then both factors are float16, whose sums are float32."""
        tokens = x.shape[0]
        if (
            self.signed
            or self.device.type != "cpu"
            or not 0 < tokens <= _FEW
            or min(self.height, self.rows) < _LINE_MIN
        ):
            return None
        scaled = x.float()[:, None, :] * self._wide(self.scales)  # (t, lines, columns)
        most = float(scaled.abs().amax()) * max(1.0, self.columns * _LARGEST / 2**8 / _HALF_MAX)
        if not 0 < most < _HALF_MAX * _LIFT:
            return None
        halves = scaled.mul_(1 / most).half()
        made = torch.empty((tokens, self.rows), dtype=torch.float16)
        step = max(1, tile_rows(self.columns, self.device) // self.height) * self.height
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            tile = self._halves(first, last, kernels)
            for top in range(first, last, self.height):
                end = min(top + self.height, last)
                matrix, line = tile[top - first : end - first], top // self.height
                for token in range(tokens):
                    torch.mv(matrix, halves[token, line], out=made[token, top:end])
        return (made.float() * (most * _HALF_LIFT)).to(x.dtype)

    def _halves(self, first: int, last: int, kernels: Kernels) -> Tensor:
        """Codes as float16, all by the same power of two too small."""
        codes = self.codes[first:last].view(torch.int8)
        bits = kernels.room(0, self.device, torch.int16, *codes.shape).copy_(codes)
        return bits.bitwise_left_shift_(7).bitwise_and_(-0x4080).view(torch.float16)


def bytes_of(
    codes: Tensor, scales: Tensor, height: int, width: int, *, signed: bool = False
) -> Bytes:
    """A stack; ``scaled`` says what its scales are, once they are there."""
    count = codes.shape[0]
    return Bytes(codes, scales, height, width, signed, [False] * count, [False] * count)
