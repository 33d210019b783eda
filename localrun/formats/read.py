"""Knows no models: which reader a file's first bytes call for, and what is refused unread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localrun.errors import HeaderError, UnsafeFormatError
from localrun.formats import limits
from localrun.formats.gguf import MAGIC, join_splits, read_gguf
from localrun.formats.header import Format, Header
from localrun.formats.reader import FileSource, Source
from localrun.formats.safetensors import join_shards, read_index, read_safetensors

_INDEX_SUFFIX = ".safetensors.index.json"
_HEAD = 512
# First bytes → what they begin. Torch checkpoints are zip archives of pickles.
_UNSAFE_MAGIC = {
    b"PK\x03\x04": "a zip archive or torch checkpoint",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x93NUMPY": "a numpy array, which may hold pickled objects",
    **{b"\x80" + bytes([protocol]): "a pickle" for protocol in range(2, 6)},
}
# Old pickle protocols have no magic; these names hold pickles or archives by convention.
PICKLE_SUFFIXES = (
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5",
)  # fmt: skip
UNSAFE_SUFFIXES = frozenset(
    (*PICKLE_SUFFIXES, ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
)


def read_header(paths: Sequence[Path]) -> Header:
    """Read the header of one model from its weight files in shard order.

    ``paths`` are the files of one GGUF or safetensors model, or one ``*.safetensors.index.json``
    whose shards lie beside it.

    Raises:
        ModelNotFoundError: a file is not there.
        UnsafeFormatError: a pickle or an archive.
        HeaderError: anything else that is not a well-formed header.
    """
    if len(paths) == 1 and paths[0].name.endswith(_INDEX_SUFFIX):
        return _read_indexed(paths[0])
    require_shards(len(paths))
    return join([_read_one(path) for path in paths])


def require_shards(count: int) -> None:
    """Hold that a model may have so many weight files, before any is read. Raises HeaderError."""
    if count > limits.SHARDS_MAX:
        raise HeaderError("files", 0, f"{count} shards, at most {limits.SHARDS_MAX}")


def join(parts: Sequence[Header]) -> Header:
    """One header of a model's weight files, each read by ``read_source``, in shard order.

    Raises:
        HeaderError: none are given, formats are mixed, or the parts are not one model's.
    """
    if not parts:
        raise HeaderError("files", 0, "none given")
    if len({part.format for part in parts}) > 1:
        raise HeaderError("files", 0, "GGUF and safetensors do not make one model")
    if parts[0].format == "gguf":
        return join_splits(parts)
    return parts[0] if len(parts) == 1 else join_shards(parts)


def _read_indexed(index: Path) -> Header:
    with FileSource(index) as source:
        placed = read_index(source, index.name)
    parts = [_read_one(index.with_name(name)) for name in sorted(set(placed.values()))]
    try:
        return join_shards(parts, placed)
    except HeaderError as error:
        raise (error if error.file else error.in_file(index.name)) from None


def _read_one(path: Path) -> Header:
    with FileSource(path) as source:
        return read_source(source, path.name)


def read_source(source: Source, name: str) -> Header:
    """Read the header of one weight file, wherever its bytes come from.

    Raises:
        UnsafeFormatError: a pickle or an archive.
        HeaderError: anything else that is not a well-formed header.
    """
    read = read_gguf if format_of(source, name) == "gguf" else read_safetensors
    return read(source, name)


def format_of(source: Source, name: str) -> Format:
    """Tell the format by the file's own bytes; the name only names what is refused.

    Raises:
        UnsafeFormatError: a pickle or an archive.
        HeaderError: neither GGUF nor safetensors.
    """
    head = source.read(0, min(_HEAD, source.size))
    if head.startswith(MAGIC):
        return "gguf"
    # Before the archives: a header of 640 bytes begins as a pickle does.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size - 8:
        return "safetensors"
    for magic, kind in _UNSAFE_MAGIC.items():
        if head.startswith(magic):
            raise UnsafeFormatError(f"{name}: {kind} is refused unread")
    if head[257:262] == b"ustar":
        raise UnsafeFormatError(f"{name}: a tar archive is refused unread")
    suffix = Path(name).suffix.lower()
    if suffix in UNSAFE_SUFFIXES:
        raise UnsafeFormatError(f"{name}: {suffix} files hold pickles or archives, refused unread")
    if suffix == ".safetensors":
        return "safetensors"
    if suffix == ".gguf" and not head:
        return "gguf"
    raise HeaderError("magic", 0, f"{head[:4]!r} begins neither GGUF nor safetensors", file=name)
