"""Knows no model: which form of a stored weight suits a device, and how its rows get there.

Everything is read a few rows at a time, straight to where it stays, so that loading takes one slab
of memory more than what is loaded. Which form a matrix gets, by how it is stored:

    FP8, or integers of eight bits, with scales   as stored
    FP4 (MXFP4)                                    as stored; libggml's MXFP4 where it may be used
    blocks of any other ggml type                  as stored where libggml may be used, else numbers
    integers of four or eight bits in groups       as stored
    anything else                                  numbers, in the type that the model computes in

Numbers it is, too, where rows are no whole blocks, where experts of one layer are stored in
different ways, and for three-dimensional or reordered packed integers: no release has such.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.matrices.fp4 import GROUP
from localrun.errors import HeaderError, SourceError
from localrun.formats.text import shown
from localrun.ggml.types import WEIGHT_TYPES, tensor_type
from localrun.releases.stored import bytewise, fours, integers
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.stored.numbers import FLOATS, require_e4m3
from localrun.releases.stored.plain import INTEGERS as WHOLE
from localrun.releases.weights import Bytes, Weight, columns, row_count

_SLAB_BYTES: Final = 16 << 20
FP8: Final = "fp8"
FP4: Final = "fp4"
INTEGERS: Final = "integers"
PAIRS: Final = "FP4 in MXFP4"
"""A release's FP4, which becomes blocks of MXFP4."""
MXFP4: Final = "MXFP4"
EIGHT_OR_FOUR: Final = (bytewise.FP8, fours.FP4)
"""How a release's own quantized matrices are stored."""
_PACKED_BITS: Final = (4, 8)


@dataclass(frozen=True, slots=True)
class Place:
    """Where matrices go: ``dtype`` is of numbers, ``packed`` says that libggml may multiply."""

    device: torch.device
    dtype: torch.dtype
    packed: bool


def form_of(weights: Sequence[Weight], place: Place) -> str:
    """Of a matrix, or of all experts: ``fp8``, ``fp4``, ``integers``, a ggml type, ``PAIRS``, or
    nothing for numbers. No rows are read."""
    forms = {_form(weight, place) for weight in weights}
    return forms.pop() if len(forms) == 1 else ""


def _form(weight: Weight, place: Place) -> str:
    if len(weight.shape) != 2 or not row_count(weight):
        return ""
    if isinstance(weight, Scaled):
        return f"{FP8} {weight.table} {weight.scales.height} {weight.scales.width}"
    if weight.stored in (fours.FP4, MXFP4):
        if columns(weight) % GROUP or not _moves(weight, weight.stored):
            return ""
        if not place.packed:
            return FP4
        return MXFP4 if weight.stored == MXFP4 else PAIRS
    if isinstance(weight, integers.Packed):
        plain = weight.bits in _PACKED_BITS and weight.groups_of is None
        zeros, biases = weight.zeros is not None, weight.biases is not None
        return f"{INTEGERS} {weight.bits} {weight.group} {zeros} {biases}" if plain else ""
    kind = weight.stored
    blocks = kind in WEIGHT_TYPES and kind not in FLOATS
    if not blocks or not place.packed or columns(weight) % tensor_type(kind).block_elements:
        return ""
    return kind if _moves(weight, kind) else ""


def _moves(weight: Weight, kind: str) -> bool:
    """Whether its rows can be had as blocks: not where their numbers are changed on the way."""
    return weight.blocks(kind, 0, 0) is not None


def require_numbers(weight: Weight, dtype: torch.dtype) -> None:
    """Raises HeaderError for stored integers where numbers are asked for."""
    if dtype.is_floating_point and weight.stored in WHOLE:
        problem = f"is {weight.stored}, which no matrix or vector of this model is stored in"
        raise HeaderError(shown(weight.name), weight.place[1], problem)


def fp8_codes(weight: Scaled, start: int, stop: int) -> Bytes:
    """``[stop - start, columns]``; raises SourceError for a NaN."""
    found = weight.codes.blocks("I8", start, stop)
    assert found is not None, "bytes are moved as they are"
    found = found.view(np.uint8).reshape(stop - start, -1)
    if weight.table == "e4m3":
        width = found.shape[-1]
        require_e4m3(found.reshape(-1), weight.part, start * width, width)
    return found


def slabs(weight: Weight, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows that are read at once, where a row takes so many bytes."""
    rows, step = row_count(weight), weight.step
    most = max(1, _SLAB_BYTES // max(row_bytes, 1) // step) * step
    for start in range(0, rows, most):
        yield start, min(start + most, rows)


def put(target: Tensor, found: NDArray[Any], weight: Weight) -> None:
    """Rows to where they stay. Raises SourceError for a number too large for the type there."""
    dtype = target.dtype
    if dtype == torch.uint8 and target.device.type == "cpu":
        # Torch takes no memory that it may not write to.
        target.numpy()[...] = found.reshape(target.shape)
        return
    readable = found if found.flags.writeable else found.copy()
    target.copy_(torch.from_numpy(readable).reshape(target.shape))
    if dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(torch.float32).max:
        most = float(np.abs(found).max(initial=0))
        if most > torch.finfo(dtype).max:
            name = str(dtype).removeprefix("torch.")
            raise SourceError(
                f"{shown(weight.name)}: {most:g} is too large for {name}",
                hint="run it with --numerics float32",
            )
