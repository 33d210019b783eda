"""Knows no model: numbers of a checkpoint, a few rows at a time, as the blocks of a GGUF type.

A number that is not finite is refused with its place: kernels would carry it into every answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localrun.errors import SourceError
from localrun.formats.header import TensorInfo
from localrun.formats.reader import Source
from localrun.quantize.gguf_writer import Written

# Of rows read at once: little enough that a large model needs no more memory than a small one.
_SLAB_BYTES: Final = 4 << 20
READABLE: Final = ("F64", "F32", "F16", "BF16")
_PLAIN: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def blocks(
    source: Source, tensor: TensorInfo, target: Written, advance: Callable[[int], None]
) -> Iterator[memoryview]:
    """The rows of ``tensor`` in ``target``'s type. ``advance`` is told of the bytes read.

    Raises:
        SourceError: a number that is not finite, in the file or in the type it is to have.
        HeaderError: the file is shorter than it was.
    """
    columns = target.columns
    row = tensor.bytes // target.rows
    step = max(1, _SLAB_BYTES // row)
    for start in range(0, target.rows, step):
        count = min(step, target.rows - start)
        raw = source.read(tensor.offset + start * row, count * row)
        numbers = _floats(raw, tensor.type.name).reshape(count, columns)
        _check(numbers, tensor, start, tensor.type.name)
        with np.errstate(over="ignore"):
            rows = numbers.astype(np.float32)
        if numbers.itemsize > rows.itemsize:
            _check(rows, tensor, start, "F32")
        yield _encoded(rows, tensor, target, start)
        advance(count * row)


def _floats(raw: bytes, kind: str) -> NDArray[np.floating[Any]]:
    if kind == "BF16":
        halves = np.frombuffer(raw, "<u2").astype(np.uint32)
        widened: NDArray[np.float32] = (halves << np.uint32(16)).view(np.float32)
        return widened
    return np.frombuffer(raw, _PLAIN[kind])


def _encoded(
    rows: NDArray[np.float32], tensor: TensorInfo, target: Written, start: int
) -> memoryview:
    kind = target.type.name
    if kind == "F32":
        made: NDArray[np.uint8] = rows.astype("<f4", copy=False).view(np.uint8)
    elif kind == "F16":
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        _check(halves, tensor, start, kind)
        made = halves.view(np.uint8)
    elif kind == "BF16":
        made = _rounded(rows)
        _check(_floats(made.tobytes(), kind).reshape(rows.shape), tensor, start, kind)
    else:
        from localrun.ggml.quantize import dequantize, quantize

        made = quantize(kind, rows)
        # The scale of a block may be too large for its 16 bits.
        _check(dequantize(kind, made, rows.shape[1]), tensor, start, kind)
    return np.ascontiguousarray(made).data.cast("B")


def _rounded(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """To the nearest BF16, ties to even."""
    bits = rows.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: NDArray[np.uint8] = (
        ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2").view(np.uint8)
    )
    return rounded


def _check(rows: NDArray[np.floating[Any]], tensor: TensorInfo, start: int, kind: str) -> None:
    finite = np.isfinite(rows)
    if finite.all():
        return
    row, column = map(int, np.argwhere(~finite)[0])
    number = rows[row, column]
    index = (start + row) * rows.shape[1] + column
    read = kind == tensor.type.name
    raise SourceError(
        f"{tensor.name}: element {index} (row {start + row}, column {column}) "
        + (f"is {number}" if read else f"is too large for {kind}"),
        # No type that is written holds more than F32.
        hint="get the checkpoint again; one that holds such numbers is damaged"
        if read or kind == "F32"
        else "choose a wider --type, such as F32",
    )
