"""Knows no folder and no budget: one sequence's state as a file, and whether a file is one.

    magic 8 · version u32 · key 32 · owner 32 · tokens u32 · state bytes u64
    tokens, i32 each · crc32 of all before
    state · crc32 of each MiB of it

All numbers are little-endian. ``key`` and ``owner`` are digests; the tokens are a private text in
another notation, so these files are as private as what was said. The checksums find damage, not
malice: the folder is its user's alone, and crc32 is the fastest that the standard library has.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

MAGIC: Final = b"LRSTATE\n"
VERSION: Final = 1
MAX_TOKENS: Final = 1 << 24
_HEAD: Final = struct.Struct("<8sI32s32sIQ")
_CRC: Final = struct.Struct("<I")
_CHUNK: Final = 1 << 20
# Never a link, never the wait for a pipe's other end.
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class DamagedStateError(Exception):
    """A file is not what its name or its first bytes promise. Never leaves the engine."""


@dataclass(frozen=True, slots=True)
class StateHeader:
    """``key`` and ``owner`` are digests of 32 bytes; ``size`` is the state's, in bytes."""

    key: bytes
    owner: bytes
    tokens: array[int]
    size: int

    @property
    def file_size(self) -> int:
        return _file_size(len(self.tokens), self.size)


def written(header: StateHeader, state: bytes) -> Iterator[bytes | memoryview]:
    """The file's bytes, part by part."""
    head = _HEAD.pack(
        MAGIC, VERSION, header.key, header.owner, len(header.tokens), len(state)
    ) + _little(header.tokens)
    yield head
    yield _CRC.pack(zlib.crc32(head))
    yield state
    yield _sums(state)


def read_header(path: Path, most: int) -> StateHeader | None:
    """What ``path`` holds, without its state; None for a file of another version.

    Raises:
        DamagedStateError: not a regular file of ours, cut short, or larger than ``most`` bytes.
        OSError: it cannot be opened or read.
    """
    with _open(path) as file:
        return _header(file, most)


def read(path: Path, most: int) -> tuple[StateHeader, bytes] | None:
    """The whole of ``path``, verified, and the time of its last use set to now.

    Raises:
        DamagedStateError, OSError: as ``read_header``; or a checksum differs.
    """
    with _open(path) as file:
        header = _header(file, most)
        if header is None:
            return None
        state = file.read(header.size)
        if len(state) != header.size or file.read() != _sums(state):
            raise DamagedStateError("the state differs from its checksum")
        os.utime(file.fileno() if os.utime in os.supports_fd else path)
    return header, state


def compact(tokens: Sequence[int]) -> array[int]:
    """Tokens as the index holds them, four bytes each."""
    return array("i", tokens)


def _open(path: Path) -> BinaryIO:
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedStateError("not a regular file")
    return open(descriptor, "rb")


def _header(file: BinaryIO, most: int) -> StateHeader | None:
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD.size)
    if size > most or len(head) < _HEAD.size:
        raise DamagedStateError(f"{size} bytes are no state")
    magic, version, key, owner, count, state_size = _HEAD.unpack(head)
    if magic != MAGIC:
        raise DamagedStateError("it does not begin as a state does")
    if version != VERSION:
        return None
    if count > MAX_TOKENS or size != _file_size(count, state_size):
        raise DamagedStateError("its length is not what its header says")
    tokens = file.read(4 * count)
    if file.read(_CRC.size) != _CRC.pack(zlib.crc32(tokens, zlib.crc32(head))):
        raise DamagedStateError("the header differs from its checksum")
    return StateHeader(key, owner, _native(tokens), state_size)


def _file_size(count: int, state_size: int) -> int:
    chunks = -(-state_size // _CHUNK)
    return _HEAD.size + 4 * count + _CRC.size + state_size + chunks * _CRC.size


def _sums(state: bytes) -> bytes:
    view = memoryview(state)
    return b"".join(
        _CRC.pack(zlib.crc32(view[at : at + _CHUNK])) for at in range(0, len(view), _CHUNK)
    )


def _little(tokens: array[int]) -> bytes:
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()


def _native(data: bytes) -> array[int]:
    tokens = array("i")
    tokens.frombytes(data)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
