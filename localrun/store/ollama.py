"""Knows no network and no Ollama program: the models in Ollama's store on this disk.

    <models>/manifests/<host>/<namespace>/<model>/<tag>     JSON, names layers by digest
    <models>/blobs/sha256-<64 hex>                          the layers

(https://github.com/ollama/ollama/tree/main/manifest). A digest becomes part of a path only after
it matched its form; the weights are the one layer of the model media type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localrun.config import Settings
from localrun.errors import ModelNotFoundError, RefError, SourceError
from localrun.ref import LocalRef
from localrun.store.files import Digest, ModelFile, Role
from localrun.store.importing import Imported, Skipped, import_each, plain_name
from localrun.store.layout import child
from localrun.store.on_disk import Found

PUBLISHER = "ollama"
MANIFEST_MAX_BYTES = 1 << 20
MODELS_MAX = 10_000
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z", re.ASCII)
_ROLES: dict[str, Role] = {
    "application/vnd.ollama.image.model": "weights",
    "application/vnd.ollama.image.projector": "projector",
}


def import_ollama(settings: Settings) -> Imported:
    """Link every model of Ollama's store into ours, as ``local:ollama/<model>-<tag>``.

    Raises:
        ModelNotFoundError: Ollama has no store here.
    """
    root = settings.ollama_models
    manifests = child(root, "manifests")
    if not manifests.is_dir():
        raise ModelNotFoundError(
            f"{root}: no models of Ollama here", hint="set OLLAMA_MODELS to their directory"
        )
    models: list[tuple[LocalRef, Found]] = []
    skipped: list[Skipped] = []
    for path in _tags(manifests):
        name = path.relative_to(manifests).as_posix()
        try:
            models.append((_ref(path), _model(path, root)))
        except (SourceError, RefError) as error:
            skipped.append(Skipped(name, error.message))
    done = import_each(models, settings)
    return Imported(done.models, (*skipped, *done.skipped))


def _tags(manifests: Path) -> Iterator[Path]:
    found = sorted(path for path in manifests.glob("*/*/*/*") if path.is_file())
    return iter(found[:MODELS_MAX])


def _ref(path: Path) -> LocalRef:
    namespace, model, tag = path.parts[-3:]
    prefix = "" if namespace == "library" else f"{namespace}-"
    return LocalRef(PUBLISHER, plain_name(f"{prefix}{model}-{tag}"))


def _model(path: Path, root: Path) -> Found:
    """The files of one tag.

    Raises:
        SourceError: the manifest is not one, or names what is not there.
    """
    files = tuple(_file(layer, path, root) for layer in _layers(path))
    weights = [file for file in files if file.role == "weights"]
    if len(weights) != 1:
        raise SourceError(f"{path}: {len(weights)} model layers where one is expected")
    return Found("gguf", (*weights, *[file for file in files if file.role != "weights"][:1]))


def _layers(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MANIFEST_MAX_BYTES + 1)
        if len(data) > MANIFEST_MAX_BYTES:
            raise ValueError(f"longer than {MANIFEST_MAX_BYTES} bytes")
        layers = json.loads(data)["layers"]
        return [layer for layer in layers if layer.get("mediaType") in _ROLES]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: not a manifest of Ollama: {error}") from error


def _file(layer: dict[str, Any], path: Path, root: Path) -> ModelFile:
    role = _ROLES[layer["mediaType"]]
    digest = layer.get("digest")
    found = _DIGEST.match(digest) if isinstance(digest, str) else None
    if found is None:
        raise SourceError(f"{path}: digest {digest!r} is not sha256:<64 hexadecimal digits>")
    blob = child(root, f"blobs/sha256-{found[1]}")
    try:
        size = blob.stat().st_size
    except OSError as error:
        raise SourceError(f"{blob}: {error.strerror}; pull the model in Ollama again") from error
    if size != layer.get("size"):
        raise SourceError(f"{blob}: {size} bytes, the manifest says {layer.get('size')!r}")
    name = "model.gguf" if role == "weights" else "mmproj.gguf"
    return ModelFile(name, size, role, path=blob, digest=Digest("sha256", found[1]))
