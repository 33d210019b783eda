"""Knows no release: matrices of one byte a number, e4m3 or integers, times scales of blocks.

A code of e4m3 has its bits in the same order as wider floats, so shifting them into place decodes
it but for a power of two, that of the difference of the exponents' biases; what is subnormal in
e4m3 is subnormal there. That power is multiplied in before any product: kernels of products take
subnormal BF16 and float32 for zero, and none takes subnormal float16 so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.matrices import halves
from localrun.backends.torch.matrices.kernels import Kernels, tile_rows

_LIFT: Final = 2.0**120  # 2 ** (127 - 7): float32 and BF16 have float32's bias
_HALF_LIFT: Final = 2.0**8  # 2 ** (15 - 7)
# Of float32 all scales below this can take the power in.
_LIFTED_MAX: Final = 2.0**7
# For so few rows of activations float16's kernel is the fastest on a CPU that has no other.
_FEW: Final = 3
_LINE_MIN: Final = 16
_HALF_BITS: Final = 15  # float16 ends at 65504
_NEAR: Final = 2.0**50


@dataclass(frozen=True, slots=True)
class Bytes:
    """``codes`` uint8 ``[..., rows, columns]``; ``scales`` float32 ``[..., lines, across]``, each
    for ``height`` rows and ``width`` columns, the last ones for what is left. ``signed``: codes are
    integers, not e4m3. Of each matrix, ``powers``: all scales are powers of two, so BF16 holds
    every number; ``largest`` is the largest scale."""

    codes: Tensor
    scales: Tensor
    height: int
    width: int
    signed: bool
    powers: list[bool]
    largest: list[float]

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
            self.largest[number : number + 1],
        )

    def scaled(self, number: int, scales: NDArray[np.float32]) -> None:
        """``scales`` are those of one matrix; what they allow is looked at once."""
        mantissas, _ = np.frexp(scales)
        self.powers[number] = bool((mantissas == 0.5).all())
        self.largest[number] = float(np.abs(scales).max(initial=0))

    def lifted(self, number: int) -> bool:
        """Whether all scales of a matrix are small enough to be multiplied by the power first."""
        return self.largest[number] < _LIFTED_MAX

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
            if self.lifted(0):
                scales = scales * _LIFT
            else:
                numbers.mul_(_LIFT)
        scales = scales.to(numbers.dtype)
        if end - line > 1:
            scales = scales.repeat_interleave(self.height, 0)
            scales = scales[first - line * self.height :][: last - first]
        if self._even:
            numbers.view(last - first, -1, self.width).mul_(scales[:, :, None])
        else:
            numbers.mul_(self._wide(scales))
        return numbers

    @property
    def _even(self) -> bool:
        """Whether the last scales are of as many columns as the others."""
        return self.scales.shape[-1] * self.width == self.columns

    def _times(self, scales: Tensor, x: Tensor) -> Tensor:
        """(lines, across) and (t, 1, columns) → (t, lines, columns)."""
        if not self._even:
            return x * self._wide(scales)
        apart = x.view(x.shape[0], 1, -1, self.width) * scales[:, :, None]
        return apart.view(x.shape[0], -1, self.columns)

    def _wide(self, scales: Tensor) -> Tensor:
        """(lines, across) → (lines, columns)."""
        width = min(self.width, self.columns)
        return scales.repeat_interleave(width, 1)[:, : self.columns]

    def few(self, x: Tensor, kernels: Kernels) -> Tensor | None:
        """As ``Codes.few``: activations take the scales of each line of blocks, and a power of two
        that makes them fit; then both factors are float16, whose sums are float32."""
        tokens, kept = x.shape[0], x.dtype
        if (
            self.signed
            or self.device.type != "cpu"
            or not 0 < tokens <= _FEW
            or min(self.height, self.rows) < _LINE_MIN
            or not halves.multiplied(kernels)
        ):
            return None
        x = x.float()
        power = self._power(x)
        if power is None:
            return None
        x = (x * power)[:, None, :]  # (t, 1, columns)
        made = torch.empty((tokens, self.rows))
        for first, last, height in self._stretches():
            scales = self.scales[first // self.height : (last - 1) // self.height + 1]
            lines = halves.lines_of(kernels, scales.shape[0], height, self.columns)
            self._halves(first, last, lines.tile)
            made[:, first:last] = lines(self._times(scales, x))[:, : last - first]
        return made.mul_(_HALF_LIFT / power).to(kept)

    def _power(self, x: Tensor) -> float | None:
        """What makes the largest activation, with the largest scale, fill float16; none where one
        of the two is far from 1, or no number."""
        each = float(x.abs().amax()), self.largest[0]
        if not all(1 / _NEAR < number < _NEAR for number in each):
            return None
        return math.ldexp(1.0, _HALF_BITS - math.frexp(each[0] * each[1])[1])

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """What is decoded at once, and how high its lines are: whole lines, or a part of one."""
        most = max(_LINE_MIN, tile_rows(self.columns, self.device))
        if self.height <= most:
            step = most // self.height * self.height
            for first in range(0, self.rows, step):
                yield first, min(first + step, self.rows), self.height
            return
        for line in range(0, self.rows, self.height):
            end = min(line + self.height, self.rows)
            for first in range(line, end, most):
                yield first, min(first + most, end), most

    def _halves(self, first: int, last: int, tile: Tensor) -> None:
        """Codes as float16, all by the same power of two too small."""
        bits = tile[: last - first].view(torch.int16)
        bits.copy_(self.codes[first:last].view(torch.int8))
        bits.bitwise_left_shift_(7).bitwise_and_(-0x4080)


def bytes_of(
    codes: Tensor, scales: Tensor, height: int, width: int, *, signed: bool = False
) -> Bytes:
    """A stack; ``scaled`` says what its scales are, once they are there."""
    count = codes.shape[0]
    return Bytes(codes, scales, height, width, signed, [False] * count, [0.0] * count)
