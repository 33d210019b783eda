"""Knows no model: the two formats of importance matrices in files, every claim of theirs checked.

GGUF: a tensor of sums and one of counts for each tensor of the model, and three keys that say what
was read. The older format: a count of entries; each is a name, a number of calls and the sums,
which are means times that number; then, where the file goes on, the number of chunks and the text's
name. Both are little endian (https://github.com/ggml-org/llama.cpp, common/imatrix-loader.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from localrun.errors import HeaderError, ModelNotFoundError, UsageError
from localrun.formats.gguf import MAGIC, read_gguf
from localrun.formats.header import Header, TensorInfo
from localrun.formats.reader import FileSource, Source
from localrun.formats.text import shown
from localrun.quantize.types.imatrix import COUNTS, SUMS, Entry, Floats, Imatrix

BYTES_MAX: Final = 4 << 30
"""Of a file: that of a model of 1 T weights with 384 experts a layer is some 1.5 GB."""
_ENTRIES_MAX: Final = 100_000
_NAME_BYTES_MAX: Final = 1024
_COUNT_MAX: Final = 2.0**53
_LEAST_ENTRY: Final = 16


def read_imatrix(path: Path) -> Imatrix:
    """Read a matrix of either format.

    Raises:
        HeaderError: it is neither format, is cut off, or contradicts itself; with the place.
        UsageError: no such file, or a number that is negative or not finite, with the tensor.
    """
    try:
        with FileSource(path) as source:
            found = _read(source, path.name)
    except ModelNotFoundError:
        raise UsageError(
            f"--imatrix {path}: no such file",
            hint="check the path, or have one made with --collect-imatrix TEXT",
        ) from None
    except HeaderError as error:
        named = error if error.file else error.in_file(path.name)
        named.hint = f"--imatrix {path}: make or get the matrix again"
        raise named from None
    for name, entry in found.entries.items():
        _check(path, name, entry)
    return Imatrix(found.entries, found.chunks, found.chunk_tokens, found.datasets, file=str(path))


def _read(source: Source, name: str) -> Imatrix:
    if source.size > BYTES_MAX:
        raise HeaderError("file", 0, f"{source.size} bytes, at most {BYTES_MAX}")
    if source.size >= len(MAGIC) and source.read(0, len(MAGIC)) == MAGIC:
        return _gguf(source, name)
    return _legacy(source)


def _check(path: Path, name: str, entry: Entry) -> None:
    bad = ~(np.isfinite(entry.sums) & (entry.sums >= 0))
    if bad.any():
        matrix, column = map(int, np.argwhere(bad)[0])
        raise UsageError(
            f"--imatrix {path}: {shown(name)}, matrix {matrix}, column {column} is"
            f" {entry.sums[matrix, column]}: a sum of squares is finite and not below zero",
            hint="the matrix is damaged: make or get it again",
        )


def _gguf(source: Source, name: str) -> Imatrix:
    header = read_gguf(source, name)
    found: dict[str, TensorInfo] = {tensor.name: tensor for tensor in header.tensors}
    names = [each.removesuffix(SUMS) for each in found if each.endswith(SUMS)]
    if not names:
        raise HeaderError("tensors", 0, f"none ends in {SUMS}: no importance matrix")
    for each in found:
        if each.endswith(COUNTS) and each.removesuffix(COUNTS) + SUMS not in found:
            raise HeaderError(shown(each), found[each].offset, "counts without sums")
    entries = {each: _gguf_entry(source, each, found) for each in names}
    chunks, tokens = (_number(header, f"imatrix.chunk_{word}") for word in ("count", "size"))
    return Imatrix(entries, chunks, tokens, _datasets(header.metadata))


def _gguf_entry(source: Source, name: str, found: Mapping[str, TensorInfo]) -> Entry:
    sums, counts = found[name + SUMS], found.get(name + COUNTS)
    if counts is None:
        raise HeaderError(shown(sums.name), sums.offset, f"sums without {COUNTS}")
    for each in (sums, counts):
        if each.type.name != "F32":
            raise HeaderError(shown(each.name), each.offset, f"is {each.type.name}, not F32")
    if sums.elements % counts.elements:
        raise HeaderError(
            shown(sums.name), sums.offset, f"{sums.elements} sums, {counts.elements} counts"
        )
    numbers = _floats(source, counts.offset, counts.elements)
    valid = np.isfinite(numbers) & (numbers >= 0) & (numbers < _COUNT_MAX)
    if not valid.all():
        raise HeaderError(shown(counts.name), counts.offset, "a count that is none")
    # A dense tensor of several matrices may have one count for all of them.
    rows = math.prod(sums.shape[:-1])
    matrices = rows if rows % counts.elements == 0 else counts.elements
    times = np.repeat(np.rint(numbers).astype(np.int64), matrices // counts.elements)
    return Entry(_floats(source, sums.offset, sums.elements).reshape(matrices, -1), times)


def _number(header: Header, key: str) -> int:
    value = header.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeaderError(key, 0, "is missing or no whole number: llama-quantize demands it")
    return value


def _datasets(metadata: Mapping[str, object]) -> tuple[str, ...]:
    value = metadata.get("imatrix.datasets")
    if value is None:
        raise HeaderError("imatrix.datasets", 0, "is missing: llama-quantize demands it")
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)


def _floats(source: Source, offset: int, count: int) -> Floats:
    return np.frombuffer(source.read(offset, 4 * count), "<f4").astype(np.float32)


class _Cursor:
    """Reads the older format: 32-bit integers, names and numbers, none beyond the file's end."""

    def __init__(self, source: Source) -> None:
        self._source, self.at = source, 0

    @property
    def left(self) -> int:
        return self._source.size - self.at

    def take(self, field: str, length: int) -> bytes:
        if not 0 <= length <= self.left:
            raise HeaderError(field, self.at, f"{length} bytes are claimed, {self.left} remain")
        data = self._source.read(self.at, length)
        self.at += length
        return data

    def integer(self, field: str) -> int:
        return int.from_bytes(self.take(field, 4), "little", signed=True)

    def text(self, field: str) -> str:
        length = self.integer(f"{field}: length")
        if length > _NAME_BYTES_MAX:
            raise HeaderError(field, self.at, f"a name of {length} bytes")
        return self.take(field, length).decode("utf-8", "replace")


def _legacy(source: Source) -> Imatrix:
    cursor = _Cursor(source)
    count = cursor.integer("entries")
    if not 0 < count <= min(_ENTRIES_MAX, source.size // _LEAST_ENTRY):
        raise HeaderError("entries", 0, f"{count}: neither GGUF nor an older importance matrix")
    entries: dict[str, Entry] = {}
    for number in range(count):
        name = cursor.text(f"entry {number}")
        if not name or name in entries:
            raise HeaderError(f"entry {number}", cursor.at, f"{shown(name)!r} names none or twice")
        entries[name] = _legacy_entry(cursor, shown(name))
    chunks, datasets = 0, []
    if cursor.left:
        chunks = cursor.integer("chunks")
    if cursor.left:
        datasets.append(cursor.text("dataset"))
    return Imatrix(entries, max(chunks, 0), 0, tuple(filter(None, datasets)))


def _legacy_entry(cursor: _Cursor, name: str) -> Entry:
    calls, values = cursor.integer(f"{name}: calls"), cursor.integer(f"{name}: values")
    if values < 1:
        raise HeaderError(name, cursor.at, f"{values} values")
    raw = cursor.take(name, 4 * values)
    sums = np.frombuffer(raw, "<f4").astype(np.float32).reshape(1, -1)
    # Sums without a call are means already.
    return Entry(sums, np.array([max(calls, 1)], np.int64))
