"""Knows no backend: the files of a plan as the model that they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localrun.errors import HeaderError
from localrun.formats.header import Format
from localrun.ref import PathRef
from localrun.store.files import ModelFile, ModelFiles

_INDEX: Final = "model.safetensors.index.json"
_SAFETENSORS: Final = ".safetensors"


def files_of(paths: Sequence[str]) -> ModelFiles:
    """Weights by their paths, and the index beside them where there is one.

    Raises:
        HeaderError: shards of two formats.
    """
    found = [Path(path) for path in paths]
    kinds = {_format(path) for path in found}
    if len(kinds) != 1:
        raise HeaderError("files", 0, "are of two formats", file=str(found[0]))
    listed = [ModelFile(path.name, path.stat().st_size, "weights", path) for path in found]
    index = found[0].parent / _INDEX
    if len(found) > 1 and index.is_file():
        listed.append(ModelFile(_INDEX, index.stat().st_size, "index", index))
    return ModelFiles(PathRef(paths[0]), "path", kinds.pop(), tuple(listed))


def _format(path: Path) -> Format:
    return "safetensors" if path.suffix == _SAFETENSORS else "gguf"
