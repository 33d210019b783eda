"""Knows no models: the header of a GGUF file, every claim checked before it is believed.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What is accepted here is what
llama.cpp's loader accepts, less tensors without elements and names that two readers could take
for different ones. Tensors lie one after another in the order of their infos, each on the
alignment; the last one's padding may be missing, as writers other than llama.cpp leave it out.

Text: keys and tensor names are identities and must be UTF-8. A single string value is for people
and templates: bytes that are not UTF-8 become U+FFFD, so that it can always be printed. Strings
of an array are data (a token may be half a character): such bytes become lone surrogates and
``s.encode("utf-8", "surrogateescape")`` gives them back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.gguf_tensors import identity, read_tensors
from localrun.formats.header import Header, MetadataValue, Scalar, TensorInfo
from localrun.formats.reader import Reader, Source
from localrun.formats.text import shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_BOOL, _STRING, _ARRAY, _U32 = 7, 8, 9, 4
# Value type → struct code; strings and arrays have none.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def read_gguf(source: Source, name: str) -> Header:
    """Read one file's header. ``name`` stands in the header and in errors.

    Raises:
        HeaderError: with the field and its offset.
    """
    try:
        return _read(Reader(source, limit=limits.GGUF_HEADER_BYTES_MAX), source.size, name)
    except HeaderError as error:
        raise error.in_file(name) from None


def _read(reader: Reader, size: int, name: str) -> Header:
    version = _version(reader)
    n_tensors = _tensor_count(reader)
    metadata, alignment = _metadata(reader, _key_count(reader))
    tensors = read_tensors(reader, n_tensors, alignment, size)
    return Header("gguf", (name,), tensors, metadata, version, reader.position)


def raw_values(source: Source, name: str) -> dict[str, bytes]:
    """Each key's value type and value as they stand in the file, keys in its order.

    Raises:
        HeaderError: as ``read_gguf``, whose limits are held here too.
    """
    try:
        reader = Reader(source, limit=limits.GGUF_HEADER_BYTES_MAX)
        _version(reader)
        _tensor_count(reader)
        entries = _entries(reader, _key_count(reader))
        return {entry.key: reader.passed(entry.start) for entry in entries}
    except HeaderError as error:
        raise error.in_file(name) from None


def _version(reader: Reader) -> int:
    magic = reader.take(4, "magic")
    if magic != MAGIC:
        raise HeaderError("magic", 0, f"{magic!r} is not {MAGIC!r}")
    version = reader.u32("version")
    if version in _VERSIONS:
        return version
    if version and version & 0xFFFF == 0:
        raise HeaderError("version", 4, "the file is big endian, which is not supported")
    raise HeaderError("version", 4, f"{version} is not one of {_VERSIONS}")


def _tensor_count(reader: Reader) -> int:
    return _count(reader, "tensor_count", limits.GGUF_TENSORS_MAX, limits.GGUF_TENSOR_BYTES_MIN)


def _key_count(reader: Reader) -> int:
    return _count(reader, "metadata_kv_count", limits.GGUF_KEYS_MAX, limits.GGUF_KEY_BYTES_MIN)


def _count(reader: Reader, field: str, most: int, smallest: int) -> int:
    start = reader.position
    count = reader.u64(field)
    if count > most:
        raise HeaderError(field, start, f"{count} is over the limit of {most}")
    if count * smallest > reader.remaining:
        raise HeaderError(
            field,
            start,
            f"{count} entries take {count * smallest} bytes, {reader.remaining} remain",
        )
    return count


class _Entry(NamedTuple):
    """A key, where its value type stands, that type, and the value."""

    key: str
    start: int
    kind: int
    value: MetadataValue


def _metadata(reader: Reader, count: int) -> tuple[dict[str, MetadataValue], int]:
    metadata: dict[str, MetadataValue] = {}
    alignment = _DEFAULT_ALIGNMENT
    for entry in _entries(reader, count):
        metadata[entry.key] = entry.value
        if entry.key == "general.alignment":
            alignment = _alignment(entry.kind, entry.value, entry.start)
    return metadata, alignment


def _entries(reader: Reader, count: int) -> Iterator[_Entry]:
    seen: set[str] = set()
    for index in range(count):
        start = reader.position
        raw = reader.string(f"metadata[{index}].key", longest=limits.GGUF_STRING_BYTES_MAX)
        key = identity(raw, f"metadata[{index}].key", start)
        if key in seen:
            raise HeaderError(f"metadata[{index}].key", start, f"{shown(key)!r} stands twice")
        seen.add(key)
        field, start = shown(key), reader.position
        kind = reader.u32(f"{field}: type")
        yield _Entry(key, start, kind, _value(reader, kind, field, start))


def _alignment(kind: int, value: MetadataValue, start: int) -> int:
    if kind != _U32 or not isinstance(value, int):
        raise HeaderError("general.alignment", start, f"has value type {kind}, not uint32 ({_U32})")
    if value.bit_count() != 1 or value > limits.GGUF_ALIGNMENT_MAX:
        raise HeaderError(
            "general.alignment",
            start + 4,
            f"{value} is not a power of two up to {limits.GGUF_ALIGNMENT_MAX}",
        )
    return value


def _value(reader: Reader, kind: int, field: str, start: int) -> MetadataValue:
    if kind == _ARRAY:
        return _array(reader, field)
    if kind == _STRING:
        raw = reader.string(field, longest=limits.GGUF_STRING_BYTES_MAX)
        return raw.decode("utf-8", "replace")
    return _numbers(reader, kind, 1, field, start)[0]


def _array(reader: Reader, field: str) -> tuple[Scalar, ...]:
    start = reader.position
    kind = reader.u32(f"{field}: element type")
    if kind == _ARRAY:
        raise HeaderError(
            field, start, f"arrays nest deeper than {limits.ARRAY_NESTING_MAX}: an array of arrays"
        )
    counted = reader.position
    count = reader.u64(f"{field}: length")
    if count > limits.GGUF_ARRAY_ELEMENTS_MAX:
        raise HeaderError(
            f"{field}: length",
            counted,
            f"{count} elements are over the limit of {limits.GGUF_ARRAY_ELEMENTS_MAX}",
        )
    if kind == _STRING:
        return reader.strings(count, field, longest=limits.GGUF_STRING_BYTES_MAX)
    return _numbers(reader, kind, count, field, start)


def _numbers(reader: Reader, kind: int, count: int, field: str, start: int) -> tuple[Scalar, ...]:
    code = _CODES.get(kind)
    if code is None:
        raise HeaderError(f"{field}: type", start, f"{kind} is no value type")
    layout = struct.Struct(f"<{count}{code}")
    begin = reader.position
    raw = reader.take(layout.size, field)
    values: tuple[Scalar, ...] = layout.unpack(raw)
    if kind != _BOOL:
        return values
    if count and max(raw) > 1:
        at = next(index for index, byte in enumerate(raw) if byte > 1)
        raise HeaderError(field, begin + at, f"{raw[at]} is neither 0 nor 1, the two booleans")
    return tuple(map(bool, raw))


def join_splits(parts: Sequence[Header]) -> Header:
    """One header of a split model's parts, in order; metadata is the first part's.

    ``split.no``, ``split.count`` and ``split.tensors.count`` of every part must fit.

    Raises:
        HeaderError: a part is missing, out of order, or repeats a tensor.
    """
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for index, part in enumerate(parts):
        name = part.files[0]
        _expect(part.metadata, "split.count", len(parts), name, absent=1)
        _expect(part.metadata, "split.no", index, name, absent=0)
        for tensor in part.tensors:
            if tensor.name in seen:
                raise HeaderError(
                    shown(tensor.name), tensor.offset, "is in two parts of the model", file=name
                )
            seen.add(tensor.name)
            tensors.append(tensor._replace(file=index) if index else tensor)
    first = parts[0]
    if len(parts) > 1:
        _expect(first.metadata, "split.tensors.count", len(tensors), first.files[0], absent=0)
    return Header(
        "gguf",
        tuple(part.files[0] for part in parts),
        tuple(tensors),
        first.metadata,
        first.version,
        sum(part.header_bytes for part in parts),
    )


def _expect(
    metadata: Mapping[str, MetadataValue], key: str, expected: int, file: str, *, absent: int
) -> None:
    value = metadata.get(key, absent)
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeaderError(key, 0, "is not an integer", file=file)
    # Writers put a count of 0 into files that are not split.
    if key == "split.count" and value == 0:
        value = 1
    if value != expected:
        raise HeaderError(key, 0, f"{value}, but {expected} would fit the files given", file=file)
