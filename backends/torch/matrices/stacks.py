"""Knows no expert: room for matrices of one form and shape, which are put there one by one.

A matrix is decoded and checked by the same code whether it is the only one, one of all experts, or
takes the place of another: what lies in a place depends on nothing but the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.matrices import fp4, fp8, loading
from localrun.backends.torch.matrices.integers import Integers
from localrun.backends.torch.matrices.loading import Place, put, slabs
from localrun.backends.torch.matrices.tiles import Codes
from localrun.ggml.weights import Weights
from localrun.releases.stored import fours, integers
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.stored.numbers import floats, require_finite
from localrun.releases.stored.part import Part
from localrun.releases.weights import Bytes, Weight, columns, row_count

_BLOCK_BYTES: Final = 17
_BROAD: Final = float(np.finfo(np.float32).max) / 448


@dataclass(frozen=True, slots=True)
class Stack:
    """``made`` is what multiplies, with nothing in it at first: codes that are decoded tile by
    tile, blocks of libggml's, or numbers ``[count, rows, columns]``. ``fill`` puts a matrix into a
    place of it; several threads may fill different ones. ``memory`` is all that places consist of,
    each tensor with one row for a place.

    ``fill`` raises SourceError for a code, a scale or a number that is none, or is too large for
    the type that it becomes; HeaderError for integers, where numbers are asked for, and where the
    file cannot be read.
    """

    made: Codes | Weights | Tensor
    fill: Callable[[int, Weight], None]
    memory: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        return self.memory[0].shape[0]

    @property
    def place_nbytes(self) -> int:
        return sum(each[0].nbytes for each in self.memory)

    def close(self) -> None:
        """Again does nothing."""
        if isinstance(self.made, Weights):
            self.made.close()


def stack(form: str, like: Weight, count: int, place: Place, *, experts: bool) -> Stack:
    """Of ``count`` matrices, all of the shape and the form of ``like``; ``experts`` are chosen by
    each token."""
    if form.startswith(loading.FP8):
        assert isinstance(like, Scaled)
        return _fp8(like, count, place)
    if form.startswith(loading.INTEGERS):
        assert isinstance(like, integers.Packed)
        return _integers(like, count, place)
    if form == loading.FP4:
        return _fp4(like, count, place)
    if form:
        return _packed(form, like, count, experts=experts)
    return _numbers(like, count, place)


def filled(form: str, weights: Sequence[Weight], place: Place, *, experts: bool) -> Stack:
    """Of all ``weights``. Raises as ``Stack.fill``."""
    made = stack(form, weights[0], len(weights), place, experts=experts)
    try:
        for number, weight in enumerate(weights):
            made.fill(number, weight)
    except BaseException:
        made.close()
        raise
    return made


def _numbers(like: Weight, count: int, place: Place) -> Stack:
    shape = count, row_count(like), columns(like)
    made = torch.empty(shape, dtype=place.dtype, device=place.device)

    def fill(number: int, weight: Weight) -> None:
        loading.require_numbers(weight, place.dtype)
        for start, stop in slabs(weight, 4 * shape[-1]):
            put(made[number, start:stop], weight.rows(start, stop), weight)

    return Stack(made, fill, (made,))


def _fp8(like: Scaled, count: int, place: Place) -> Stack:
    rows, wide = like.shape
    lines, across = like.scales.total, like.scales.columns
    codes = _bytes(place, count, rows, wide)
    scales = torch.empty((count, lines, across), device=place.device)
    height, width = like.scales.height, like.scales.width
    made = fp8.bytes_of(codes, scales, height, width, signed=like.table == "int8")

    def fill(number: int, weight: Weight) -> None:
        assert isinstance(weight, Scaled)
        found = weight.scales.read(0, lines)
        put(scales[number], found, weight)
        made.scaled(number, found)
        broad = bool(np.abs(found).max(initial=0) > _BROAD)
        for start, stop in slabs(weight, wide):
            put(codes[number, start:stop], loading.fp8_codes(weight, start, stop), weight)
            if broad:
                weight.rows(start, stop)

    return Stack(made, fill, (codes, scales))


def _fp4(like: Weight, count: int, place: Place) -> Stack:
    """Of whole groups, in the order of releases."""
    rows, groups = like.shape[0], like.shape[1] // fp4.GROUP
    codes = _bytes(place, count, rows, groups * fp4.GROUP // 2)
    exponents = _bytes(place, count, rows, groups)
    made = fp4.fours_of(codes, exponents)

    def fill(number: int, weight: Weight) -> None:
        largest = 0
        for start, stop in slabs(weight, groups * _BLOCK_BYTES):
            found = _blocks(weight, weight.stored, start, stop)
            found = found.reshape(stop - start, groups, _BLOCK_BYTES)
            largest = max(largest, int(found[:, :, 0].max(initial=0)))
            put(exponents[number, start:stop], found[:, :, 0], weight)
            packed = found[:, :, 1:]
            if weight.stored == loading.MXFP4:
                packed = fours.neighbours(np.ascontiguousarray(packed).reshape(-1))
            put(codes[number, start:stop], packed, weight)
        made.scaled(number, largest)

    return Stack(made, fill, (codes, exponents))


def _packed(form: str, like: Weight, count: int, *, experts: bool) -> Stack:
    """Blocks of a ggml type. Experts in MXFP4 are laid out anew, for the kernels of long prompts;
    Q4_K would be slower by it. Those of a release keep the order of their codes, as a matter of
    time: they may have to be put there again and again."""
    rows, wide = like.shape
    kind = loading.MXFP4 if form == loading.PAIRS else form
    moved = fours.FP4 if form == loading.PAIRS and experts else kind
    again = experts and kind == loading.MXFP4
    # The library lays out no stack of one.
    places = max(count, 2) if experts else 0
    made = Weights(kind, rows, wide, None, experts=places, repack=again)
    memory = torch.from_numpy(made.matrices)[:count]

    def fill(number: int, weight: Weight) -> None:
        if again:
            made.put(number, _blocks(weight, moved, 0, rows))
            return
        for start, stop in slabs(weight, memory[0].nbytes // rows):
            target = made.memory(number * rows + start, number * rows + stop)
            target[:] = _blocks(weight, moved, start, stop).reshape(-1)

    return Stack(made, fill, (memory,))


def _integers(like: integers.Packed, count: int, place: Place) -> Stack:
    rows, wide = like.shape
    stored = like.part.info.bytes // rows
    groups = like.scales.columns
    codes = _bytes(place, count, rows, stored)
    scales = torch.empty((count, rows, groups), device=place.device)
    zeros = torch.empty_like(scales) if like.zeros is not None else None
    biases = torch.empty_like(scales) if like.biases is not None else None
    none = zeros is None and biases is None
    zero = 1 << like.bits - 1 if none else 0
    made = Integers(codes, scales, zeros, biases, wide, like.group, like.bits, zero)

    def fill(number: int, weight: Weight) -> None:
        assert isinstance(weight, integers.Packed)
        for a, b in slabs(weight, wide):
            # Holds that every number is finite.
            weight.rows(a, b)
            put(codes[number, a:b], weight.part.read(a, b, rows), weight)
            put(scales[number, a:b], _floats(weight.scales, a, b), weight)
            if zeros is not None and weight.zeros is not None:
                put(zeros[number, a:b], weight.zeros.read(a, b), weight)
            if biases is not None and weight.biases is not None:
                put(biases[number, a:b], _floats(weight.biases, a, b), weight)

    each = (codes, scales, zeros, biases)
    return Stack(made, fill, tuple(part for part in each if part is not None))


def _bytes(place: Place, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device=place.device)


def _blocks(weight: Weight, kind: str, start: int, stop: int) -> Bytes:
    found = weight.blocks(kind, start, stop)
    assert found is not None, "held by form_of"
    return found


def _floats(part: Part, start: int, stop: int) -> NDArray[Any]:
    raw = part.read(start, stop, part.rows)
    require_finite(raw, part, start * part.columns, part.columns)
    return floats(raw, part.kind).reshape(stop - start, -1)
