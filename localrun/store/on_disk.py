"""Knows no store: which files a path of the user's stands for.

A ``.gguf`` (the first of a split one brings its siblings), a ``.safetensors``, or a directory with
either. Names inside a shard index are a stranger's text and go through ``layout.child``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from localrun.errors import HeaderError, ModelNotFoundError, SourceError, UnsafeFormatError
from localrun.formats.header import Format
from localrun.formats.read import UNSAFE_SUFFIXES
from localrun.ref import PathRef
from localrun.store.files import ModelFile, ModelFiles, Role
from localrun.store.layout import child

INDEX_NAME = "model.safetensors.index.json"
INDEX_MAX_BYTES = 64 << 20
SHARDS_MAX = 1000
_SPLIT = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf\Z", re.ASCII)
_PROJECTOR = re.compile(r"(\A|[-_.])mmproj([-_.]|\Z)", re.IGNORECASE)
_TOKENIZER = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
    }
)
_CONFIG = frozenset({"config.json", "generation_config.json"})


@dataclass(frozen=True, slots=True)
class Found:
    """The files of one model on this disk, weights first and in shard order."""

    format: Format
    files: tuple[ModelFile, ...]


def model_files(ref: PathRef) -> ModelFiles:
    """The model a path stands for.

    Raises:
        ModelNotFoundError: nothing there. SourceError: no model, or not a whole one.
        UnsafeFormatError: pickled weights or an archive.
    """
    found = find(Path(ref.path).expanduser().absolute())
    return ModelFiles(ref=ref, origin="path", format=found.format, files=found.files)


def find(path: Path) -> Found:
    """As ``model_files``, for an absolute path."""
    try:
        if path.is_dir():
            return _directory(path)
        if not path.exists():
            raise ModelNotFoundError(f"{path}: no such file", hint="check the path")
    except OSError as error:
        raise ModelNotFoundError(f"{path}: {error.strerror}", hint="check the path") from error
    if path.suffix == ".gguf":
        return Found("gguf", _gguf(path))
    if path.suffix == ".safetensors":
        return Found("safetensors", (_file(path, path.name, "weights"),))
    raise _refused(path)


def model_name(name: str) -> str:
    """A file's name without what says its format and its place in a split."""
    split = _SPLIT.match(name)
    return split[1] if split else name.removesuffix(".gguf").removesuffix(".safetensors")


def begins_model(name: str) -> bool:
    """True for a GGUF that is neither a projector nor a later part of a split."""
    split = _SPLIT.match(name)
    return not _PROJECTOR.search(name) and (split is None or int(split[2]) == 1)


def projector(directory: Path) -> tuple[ModelFile, ...]:
    """The one projector lying in a directory; none where several could be meant."""
    names = [path.name for path in directory.glob("*.gguf") if _PROJECTOR.search(path.name)]
    found = tuple(_file(child(directory, name), name, "projector") for name in names)
    return found if len(found) == 1 else ()


def role_of(name: str) -> Role:
    """What a file of a checkpoint is for, told by its name inside the model's directory."""
    if name.endswith(".safetensors"):
        return "weights"
    return _extra(name) or "other"


def _refused(path: Path) -> SourceError:
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        return UnsafeFormatError(f"{path}: neither GGUF nor safetensors, and refused unread")
    return SourceError(
        f"{path}: neither a .gguf nor a .safetensors file",
        hint="name the model's GGUF file, or the directory of its safetensors files",
    )


def _directory(path: Path) -> Found:
    names = sorted(entry.name for entry in path.iterdir())
    extra = tuple(
        _file(child(path, name), name, role) for name in names if (role := _extra(name)) is not None
    )
    if INDEX_NAME in names:
        return Found("safetensors", (*_indexed(path), *extra))
    tensors = [name for name in names if name.endswith(".safetensors")]
    first = [name for name in names if name.endswith(".gguf") and begins_model(name)]
    if "model.safetensors" in tensors or len(tensors) == 1:
        name = "model.safetensors" if "model.safetensors" in tensors else tensors[0]
        return Found("safetensors", (_file(child(path, name), name, "weights"), *extra))
    if len(first) == 1:
        return Found("gguf", (*_gguf(child(path, first[0])), *extra))
    for name in names:
        if Path(name).suffix.lower() in UNSAFE_SUFFIXES:
            raise _refused(child(path, name))
    raise SourceError(
        f"{path}: {len(first)} GGUF models and no safetensors model in this directory",
        hint="name the file",
    )


def _extra(name: str) -> Role | None:
    if name in _CONFIG:
        return "config"
    if name in _TOKENIZER:
        return "tokenizer"
    if name == INDEX_NAME:
        return "index"
    return "projector" if name.endswith(".gguf") and _PROJECTOR.search(name) else None


def _gguf(path: Path) -> tuple[ModelFile, ...]:
    split = _SPLIT.match(path.name)
    if split is None:
        return (_file(path, path.name, "weights"),)
    count = int(split[3])
    if not 1 <= count <= SHARDS_MAX:
        raise SourceError(f"{path}: {count} shards")
    names = [f"{split[1]}-{number:05}-of-{split[3]}.gguf" for number in range(1, count + 1)]
    return tuple(_file(path.with_name(name), name, "weights") for name in names)


def _indexed(path: Path) -> tuple[ModelFile, ...]:
    index = child(path, INDEX_NAME)
    try:
        with index.open("rb") as stream:
            data = stream.read(INDEX_MAX_BYTES + 1)
        if len(data) > INDEX_MAX_BYTES:
            raise ValueError(f"longer than {INDEX_MAX_BYTES} bytes")
        shards = sorted(set(json.loads(data)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"not a shard index: {error}"
        raise HeaderError("weight_map", 0, problem, file=str(index)) from error
    if not all(isinstance(name, str) for name in shards) or len(shards) > SHARDS_MAX:
        raise HeaderError("weight_map", 0, "names what is not a file", file=str(index))
    for name in shards:
        if not name.endswith(".safetensors"):
            raise UnsafeFormatError(f"{index}: shard {name!r} is not safetensors")
    return tuple(_file(child(path, name), name, "weights") for name in shards)


def _file(path: Path, name: str, role: Role) -> ModelFile:
    try:
        return ModelFile(name=name, bytes=path.stat().st_size, role=role, path=path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}: the model is not whole") from error
