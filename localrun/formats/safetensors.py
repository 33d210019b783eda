"""Knows no models: the header of a safetensors file and the index of a sharded one.

Layout: https://github.com/huggingface/safetensors#format. Whatever is accepted here the library
accepts too; refused besides are duplicate names, unknown fields and files without a leading brace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import attrgetter

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.header import Header, TensorInfo
from localrun.formats.reader import Source
from localrun.formats.strict_json import as_object, parse_object
from localrun.formats.text import shown
from localrun.formats.types import SAFETENSORS_TYPES

_PREFIX = 8
_U64_MAX = 2**64 - 1
_FIELDS = {"dtype", "shape", "data_offsets"}
# Not bool, which is a subclass.
_INTEGER = frozenset({int})
# One component on POSIX and on Windows alike: no separator, drive, stream or hidden name.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors\Z", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])\.", re.IGNORECASE)


def read_safetensors(source: Source, name: str) -> Header:
    """Read one file's header. ``name`` stands in the header and in errors.

    Raises:
        HeaderError: with the field and its offset.
    """
    try:
        return _read(source, name)
    except HeaderError as error:
        raise error.in_file(name) from None


def _read(source: Source, name: str) -> Header:
    length = header_length(source)
    raw = source.read(_PREFIX, length)
    if raw[:1] != b"{":
        raise HeaderError("header", _PREFIX, f"begins with {raw[:1]!r}, not with '{{'")
    entries = parse_object(raw, "header", _PREFIX)
    metadata = _strings(entries.pop("__metadata__", {}))
    if len(entries) > limits.SAFETENSORS_TENSORS_MAX:
        raise HeaderError(
            "header", _PREFIX, f"{len(entries)} tensors, at most {limits.SAFETENSORS_TENSORS_MAX}"
        )
    data = _PREFIX + length
    tensors = [
        _plain_tensor(key, value, data) or _tensor(key, value, data)
        for key, value in entries.items()
    ]
    tensors.sort(key=attrgetter("offset", "bytes"))
    _covers(tensors, data, source.size)
    return Header("safetensors", (name,), tuple(tensors), metadata, 0, data)


def header_length(source: Source) -> int:
    """The declared length of the JSON header, checked against the limit and the file.

    Raises:
        HeaderError: it is too short, too long or ends behind the file.
    """
    if source.size < _PREFIX + 2:
        raise HeaderError("header length", 0, f"the file has only {source.size} bytes")
    length = int.from_bytes(source.read(0, _PREFIX), "little")
    most = min(limits.SAFETENSORS_HEADER_BYTES_MAX, source.size - _PREFIX)
    if not 2 <= length <= most:
        raise HeaderError("header length", 0, f"{length} is not between 2 and {most}")
    return length


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise HeaderError(field, _PREFIX, f"is a JSON {type(value).__name__}, not a string")
    if not value.isascii() and any("\ud800" <= mark <= "\udfff" for mark in value):
        raise HeaderError(field, _PREFIX, "holds half of a surrogate pair")
    return value


def _strings(value: object) -> dict[str, str]:
    return {
        _text(key, "__metadata__"): _text(item, f"__metadata__: {shown(key)}")
        for key, item in as_object(value, "__metadata__").items()
    }


def _plain_tensor(key: str, value: object, data: int) -> TensorInfo | None:
    """What ``_tensor`` returns, for an entry like those in nearly every file; None for any other.

    A header may hold 100,000 of them: this pass costs half, and makes no error's words.
    """
    if type(value) is not dict or len(value) != 3 or not key.isascii():
        return None
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    kind = SAFETENSORS_TYPES.get(dtype) if type(dtype) is str else None
    if kind is None or type(shape) is not list or type(offsets) is not list or len(shape) > 8:
        return None
    elements = 1
    for dim in shape:
        if type(dim) is not int or dim < 1:
            return None
        elements *= dim
    if len(offsets) != 2 or kind.block_elements != 1:
        return None
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= _U64_MAX:
        return None
    size = end - begin
    if size != elements * kind.block_bytes or size * 8 > _U64_MAX:
        return None
    return TensorInfo(key, kind, tuple(shape), data + begin, size)


def _tensor(key: str, value: object, data: int) -> TensorInfo:
    _text(key, "tensor name")
    try:
        return _claim(key, value, data)
    except HeaderError as error:
        field = f"{shown(key)}: {error.field}" if error.field else shown(key)
        raise HeaderError(field, error.offset, error.problem) from None


def _claim(key: str, value: object, data: int) -> TensorInfo:
    entry = as_object(value, "")
    if entry.keys() != _FIELDS:
        have = ", ".join(shown(name) for name in list(entry)[:5])
        raise HeaderError("", _PREFIX, f"has the fields {have}; dtype, shape, data_offsets fit")
    kind = SAFETENSORS_TYPES.get(_text(entry["dtype"], "dtype"))
    if kind is None:
        raise HeaderError("dtype", _PREFIX, f"{shown(str(entry['dtype']))} is no type")
    shape = _integers(entry["shape"], "shape")
    if len(shape) > limits.SAFETENSORS_DIMENSIONS_MAX:
        raise HeaderError("shape", _PREFIX, f"has {len(shape)} dimensions")
    offsets = _integers(entry["data_offsets"], "data_offsets")
    if len(offsets) != 2:
        raise HeaderError("data_offsets", _PREFIX, f"has {len(offsets)} numbers, not 2")
    begin, end = offsets
    elements = 1
    for dim in shape:
        elements *= dim
        # The library multiplies in 64 bits and refuses an overflow even where a 0 follows.
        if elements * 8 * kind.block_bytes > _U64_MAX:
            raise HeaderError("shape", _PREFIX, "has too many elements")
    blocks, rest = divmod(elements, kind.block_elements)
    if rest or begin > end or end - begin != blocks * kind.block_bytes:
        problem = f"{begin} to {end} is not what shape {list(shape)} of {kind.name} takes"
        raise HeaderError("data_offsets", _PREFIX, problem)
    return TensorInfo(key, kind, shape, data + begin, end - begin)


def _integers(value: object, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not _INTEGER.issuperset(map(type, value)):
        raise HeaderError(field, _PREFIX, "is not a list of integers")
    if value and not 0 <= min(value) <= max(value) <= _U64_MAX:
        raise HeaderError(field, _PREFIX, "holds a number that 64 bits without a sign do not")
    return tuple(value)


def _covers(tensors: Sequence[TensorInfo], data: int, size: int) -> None:
    position = data
    for tensor in tensors:
        if tensor.offset != position:
            wrong = "overlaps" if tensor.offset < position else "leaves a gap behind"
            raise HeaderError(
                f"{shown(tensor.name)}: data_offsets",
                tensor.offset,
                f"{wrong} the tensor before it, which ends at {position}",
            )
        position += tensor.bytes
    if position != size:
        raise HeaderError(
            "data", data, f"the tensors end at byte {position}, the file has {size} bytes"
        )


def read_index(source: Source, name: str) -> dict[str, str]:
    """Read ``*.safetensors.index.json``: tensor name → file name of its shard.

    Shards lie beside the index: a name is one component on every operating system.

    Raises:
        HeaderError: not an index, or a file name that is not a plain one.
    """
    try:
        if source.size > limits.SAFETENSORS_INDEX_BYTES_MAX:
            raise HeaderError("file", 0, f"{source.size} bytes are too many for an index")
        document = parse_object(source.read(0, source.size), "index", 0)
        weights = as_object(document.get("weight_map"), "weight_map")
        placed = {
            _text(key, "weight_map"): _shard_name(value, f"weight_map: {shown(key)}")
            for key, value in weights.items()
        }
        shards = len(set(placed.values()))
        if not 0 < shards <= limits.SHARDS_MAX:
            raise HeaderError("weight_map", 0, f"{shards} shards, 1 to {limits.SHARDS_MAX} fit")
        return placed
    except HeaderError as error:
        raise error.in_file(name) from None


def _shard_name(value: object, field: str) -> str:
    name = _text(value, field)
    if not _SHARD_NAME.match(name) or ".." in name or _RESERVED.match(name):
        raise HeaderError(field, 0, f"{shown(name)!r} is not a plain .safetensors file name")
    return name


def join_shards(parts: Sequence[Header], index: Mapping[str, str] | None = None) -> Header:
    """One header of a sharded model's files, in order, checked against the index if there is one.

    Raises:
        HeaderError: a tensor stands in two files, or the index and the files disagree.
    """
    tensors: list[TensorInfo] = []
    files: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = part.files[0]
        for tensor in part.tensors:
            if tensor.name in files:
                other = files[tensor.name]
                raise HeaderError(
                    shown(tensor.name), tensor.offset, f"is in {other} too", file=file
                )
            files[tensor.name] = file
            tensors.append(TensorInfo(*tensor[:5], number) if number else tensor)
    if index is not None and index != files:
        odd = min(key for key, _ in index.items() ^ files.items())
        where = files.get(odd, "in no file")
        raise HeaderError(
            f"weight_map: {shown(odd)}", 0, f"says {index.get(odd, 'nothing')}, it is {where}"
        )
    return Header(
        "safetensors",
        tuple(part.files[0] for part in parts),
        tuple(tensors),
        parts[0].metadata,
        0,
        sum(part.header_bytes for part in parts),
    )
