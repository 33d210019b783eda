"""Knows no network and no LM Studio program: the models in LM Studio's folder on this disk.

<models>/<publisher>/<repository>/<file>.gguf
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from localrun.config import Settings
from localrun.errors import ModelNotFoundError, RefError, SourceError
from localrun.ref import LocalRef
from localrun.store import on_disk
from localrun.store.importing import Imported, Skipped, import_each, plain_name
from localrun.store.on_disk import Found

PUBLISHER = "lmstudio"


def import_lmstudio(settings: Settings) -> Imported:
    """Link every GGUF model of LM Studio into our store, as ``local:lmstudio/<file>``.

    Raises:
        ModelNotFoundError: LM Studio has no models here.
    """
    places = [place for place in settings.lmstudio_models if place.is_dir()]
    if not places:
        raise ModelNotFoundError(
            f"{settings.lmstudio_models[0]}: no models of LM Studio here",
            hint="`localrun import PATH` takes in one file or directory",
        )
    paths = [path for place in places for path in _models(place)]
    stems = Counter(on_disk.model_name(path.name) for path in paths)
    models: list[tuple[LocalRef, Found]] = []
    skipped: list[Skipped] = []
    for path in paths:
        stem = on_disk.model_name(path.name)
        # Two publishers offer the same file name: then both carry their publisher's.
        name = stem if stems[stem] == 1 else f"{path.parts[-3]}-{stem}"
        try:
            models.append((LocalRef(PUBLISHER, plain_name(name)), _found(path)))
        except (SourceError, RefError, ModelNotFoundError) as error:
            skipped.append(Skipped(path.name, error.message))
    done = import_each(models, settings)
    return Imported(done.models, (*skipped, *done.skipped))


def _models(place: Path) -> Iterator[Path]:
    for path in sorted(place.glob("*/*/*.gguf")):
        if path.is_file() and on_disk.begins_model(path.name):
            yield path


def _found(path: Path) -> Found:
    found = on_disk.find(path)
    return Found(found.format, (*found.files, *on_disk.projector(path.parent)))
