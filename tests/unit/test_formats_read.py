"""Which reader a file's own bytes call for, and what is refused unread."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - the canaries that must never be unpickled are made here
import sys
import zipfile
from pathlib import Path

import pytest

from localrun.errors import HeaderError, ModelNotFoundError, UnsafeFormatError
from localrun.formats.read import read_header
from localrun.formats.reader import FileSource
from tests.gguf_builder import (
    gguf_bytes,
    llama_metadata,
    raw_safetensors,
    safetensors_bytes,
    split_gguf,
)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def _zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


@pytest.mark.parametrize(
    "suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".safetensors", ""]
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_unread_under_any_name(
    suffix: str, protocol: int, tmp_path: Path
) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Canary(canary), protocol))

    with pytest.raises(UnsafeFormatError) as caught:
        read_header([path])
    assert "safetensors" in caught.value.hint
    assert path.name in str(caught.value)
    assert not canary.exists()


ARCHIVES = {
    "gzip": b"\x1f\x8b\x08\x00" + bytes(60),
    "bzip2": b"BZh91AY&SY" + bytes(60),
    "xz": b"\xfd7zXZ\x00" + bytes(60),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(60),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(60),
    "tar": b"x".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
    "npy": b"\x93NUMPY\x01\x00" + bytes(60),
    "empty_zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_refused_unread(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(ARCHIVES[name])

    with pytest.raises(UnsafeFormatError, match=r"model\.gguf: .*refused unread"):
        read_header([path])


def test_a_torch_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    _zip(path, pickle.dumps(Canary(canary)))

    with pytest.raises(UnsafeFormatError, match="torch checkpoint"):
        read_header([path])
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pkl", ".npy", ".npz", ".tar", ".tgz"])
def test_names_of_pickles_and_archives_are_refused_whatever_they_hold(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"(lp0\n.")

    with pytest.raises(UnsafeFormatError):
        read_header([path])


def test_gguf_and_safetensors_are_told_by_their_bytes(tmp_path: Path) -> None:
    gguf, tensors = tmp_path / "sha256-0123", tmp_path / "blob.bin"
    gguf.write_bytes(gguf_bytes(llama_metadata()))
    tensors.write_bytes(safetensors_bytes([("a", (1,), "U8")]))

    assert (read_header([gguf]).format, read_header([tensors]).format) == ("gguf", "safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x8B1F])
def test_a_header_whose_length_looks_like_another_magic_is_read(
    length: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors("{}".ljust(length)))

    assert read_header([path]).header_bytes == length + 8


def test_split_gguf_is_read_in_the_order_given(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-{i}.gguf" for i in range(3)]
    for path, data in zip(paths, split_gguf(3), strict=True):
        path.write_bytes(data)

    assert len(read_header(paths).tensors) == 3


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "magic"),
        (b"hello, world", "magic"),
        (b"version https://git-lfs.github.com/spec/v1\n", "magic"),
        (b"ggjt\x03\0\0\0", "magic"),
        (b"FUGG", "magic"),
    ],
)
def test_anything_else_is_a_header_error_with_the_file_name(
    content: bytes, field: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    with pytest.raises(HeaderError) as caught:
        read_header([path])
    assert (caught.value.field, caught.value.offset, caught.value.file) == (field, 0, "model.gguf")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        read_header([tmp_path / "gone.gguf"])


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")

    for path in (tmp_path, tmp_path / "fifo.gguf", Path("/dev/zero")):
        with pytest.raises(HeaderError) as caught:
            read_header([path])
        assert caught.value.field == "file"


def test_two_formats_do_not_make_one_model(tmp_path: Path) -> None:
    gguf, tensors = tmp_path / "a.gguf", tmp_path / "b.safetensors"
    gguf.write_bytes(gguf_bytes())
    tensors.write_bytes(safetensors_bytes())

    with pytest.raises(HeaderError, match="do not make one model"):
        read_header([gguf, tensors])


def test_no_file_is_no_model() -> None:
    with pytest.raises(HeaderError):
        read_header([])


def test_a_file_cut_while_it_is_read_is_a_header_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(100))
    with FileSource(path) as source:
        os.truncate(path, 10)
        with pytest.raises(HeaderError, match="90 bytes fewer"):
            source.read(0, 100)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such advice")
def test_pages_of_a_file_that_was_read_can_be_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "file", []
    path.write_bytes(bytes(9000))
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *rest: asked.append(rest))
    with FileSource(path) as source:
        source.forget()

        assert asked == [(0, 0, os.POSIX_FADV_DONTNEED)]
        assert source.read(0, 9000) == bytes(9000)
