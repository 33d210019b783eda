"""Knows no metadata: the tensor infos of a GGUF file, and that their data lies where they say.

A header may hold 100,000 of them, so an info costs three reads and field names are only made up
when one is at fault.
"""

from __future__ import annotations

import struct

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.header import TensorInfo, TensorType
from localrun.formats.reader import Reader
from localrun.formats.text import shown
from localrun.formats.types import GGUF_REMOVED, GGUF_TYPES

# By number of dimensions: the dimensions, the type and the offset.
_LAYOUTS = [struct.Struct(f"<{count}QIQ") for count in range(limits.GGUF_DIMENSIONS_MAX + 1)]
# Name, type, shape, bytes, offset in the data, and where that offset stands.
_Claim = tuple[str, TensorType, tuple[int, ...], int, int, int]


def read_tensors(reader: Reader, count: int, alignment: int, size: int) -> tuple[TensorInfo, ...]:
    """``count`` infos, placed in a file of ``size`` bytes.

    Raises:
        HeaderError: with the tensor's name, the field and its offset.
    """
    claims: list[_Claim] = []
    seen: set[str] = set()
    for index in range(count):
        start = reader.position
        try:
            raw = reader.string("name", longest=limits.GGUF_TENSOR_NAME_BYTES_MAX)
            name = identity(raw, "name", start)
            if name in seen:
                raise HeaderError("name", start, f"{shown(name)!r} stands twice")
        except HeaderError as error:
            raise _within(f"tensor[{index}].", error) from None
        seen.add(name)
        try:
            claims.append(_claim(reader, name))
        except HeaderError as error:
            raise _within(f"{shown(name)}: ", error) from None
    return _placed(claims, padded(reader.position, alignment), alignment, size)


def _within(place: str, error: HeaderError) -> HeaderError:
    return HeaderError(place + error.field, error.offset, error.problem)


def identity(raw: bytes, field: str, offset: int) -> str:
    """A key or a tensor name: text that every reader takes for the same.

    Raises:
        HeaderError: it is empty, not UTF-8, or holds a NUL at which C would cut it.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise HeaderError(field, offset, "is not UTF-8") from None
    if not name or "\0" in name:
        raise HeaderError(field, offset, "is empty" if not name else "holds a NUL character")
    return name


def _claim(reader: Reader, name: str) -> _Claim:
    start = reader.position
    n_dims = reader.u32("dimensions")
    if n_dims > limits.GGUF_DIMENSIONS_MAX:
        raise HeaderError("dimensions", start, f"{n_dims}, at most {limits.GGUF_DIMENSIONS_MAX}")
    layout = _LAYOUTS[n_dims]
    start = reader.position
    if reader.remaining < layout.size:
        _name_the_missing(reader, n_dims)
    *dims, number, offset = layout.unpack(reader.take(layout.size, "shape"))
    for index, dim in enumerate(dims):
        if not 0 < dim <= limits.GGUF_DIMENSION_MAX:
            problem = f"{dim} elements are impossible"
            raise HeaderError(f"shape[{index}]", start + 8 * index, problem)
    kind = GGUF_TYPES.get(number)
    if kind is None:
        removed = GGUF_REMOVED.get(number)
        problem = f"{removed} was removed from GGUF" if removed else f"{number} is no tensor type"
        raise HeaderError("type", start + 8 * n_dims, problem)
    blocks, rest = divmod(dims[0] if dims else 1, kind.block_elements)
    if rest:
        problem = f"not a multiple of {kind.name}'s block of {kind.block_elements}"
        raise HeaderError("shape[0]", start, f"{dims[0] if dims else 1} elements are {problem}")
    for dim in dims[1:]:
        blocks *= dim
    at = start + layout.size - 8
    return name, kind, tuple(reversed(dims)), blocks * kind.block_bytes, offset, at


def _name_the_missing(reader: Reader, n_dims: int) -> None:
    """Read field by field a tensor info that the file ends in, for the error's sake."""
    for index in range(n_dims):
        reader.u64(f"shape[{index}]")
    reader.u32("type")
    reader.u64("offset")


def _placed(claims: list[_Claim], data: int, alignment: int, size: int) -> tuple[TensorInfo, ...]:
    expected = 0
    placed: list[TensorInfo] = []
    for name, kind, shape, length, offset, at in claims:
        begin = data + offset
        if offset != expected:
            problem = _misplaced(offset, expected, alignment)
            raise HeaderError(f"{shown(name)}: offset", at, problem)
        if begin + length > size:
            problem = f"its {length} bytes end at {begin + length}, the file at {size}"
            raise HeaderError(f"{shown(name)}: offset", at, problem)
        expected += padded(length, alignment)
        placed.append(TensorInfo(name, kind, shape, begin, length))
    return tuple(placed)


def _misplaced(offset: int, expected: int, alignment: int) -> str:
    if offset % alignment:
        return f"{offset} is not on the alignment of {alignment}"
    if offset < expected:
        return f"{offset} overlaps the tensor before it, which ends at {expected}"
    return f"{offset} leaves a gap: the tensor before it ends at {expected}"


def padded(count: int, alignment: int) -> int:
    """``count`` rounded up to the alignment."""
    return -(-count // alignment) * alignment
