"""Knows one archive: llama.cpp as llama-cpp-python's source archive holds it.

It is what the installed runner was built from: ``llama-server`` to be measured beside ours, the
chat templates of some seventy models as their makers published them, and real vocabularies in GGUF.
Kept in ``build/``, fetched with the developer's own pip when absent.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
BUILD = Path(__file__).parents[1] / "build"
FOLDER = BUILD / f"llama.cpp-{VERSION}"
INSIDE = PurePosixPath("vendor/llama.cpp")
MEMBER_BYTES_MAX = 32 * 1024 * 1024


def fetch() -> Path:
    """llama.cpp's own folder; downloaded (75 MB) and unpacked (176 MB) where it is not there."""
    if FOLDER.is_dir():
        return FOLDER
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        archive = _download(Path(folder))
        unpacked = Path(folder) / "unpacked"
        unpack(archive, unpacked)
        unpacked.rename(FOLDER)
    return FOLDER


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary=llama-cpp-python", f"llama-cpp-python=={VERSION}"]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with archive.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256, archive.name
    return archive


def unpack(archive: Path, place: Path) -> None:
    """Regular files below ``INSIDE`` only, under paths built from their checked parts."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not (member.isreg() and name.is_relative_to(INSIDE)) or ".." in name.parts:
                continue
            assert member.size <= MEMBER_BYTES_MAX, member.name
            path = place / name.relative_to(INSIDE)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
