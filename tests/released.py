"""Models as they were released, by their packaged configurations: fields, tensors and caches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from localrun import models
from localrun.models.architecture import Architecture, Caches
from localrun.models.architectures import family
from localrun.models.fields import Fields
from localrun.models.layout import LayoutTensor
from localrun.models.storage import storage_of

GEOMETRIES = Path(str(models.__file__)).parent / "geometries"
Config = Mapping[str, object]


@lru_cache
def released(key: str) -> Config:
    found: Config = json.loads((GEOMETRIES / f"{key}.json").read_text(encoding="utf-8"))
    return found


def flat(config: Config) -> dict[str, object]:
    """The fields of ``text_config`` over those of the config itself, as architectures see them."""
    text = config.get("text_config", {})
    assert isinstance(text, dict)
    return {**config, **text}


def edited(key: str, **changes: object) -> dict[str, object]:
    """Fields of a release, flat; a change to None leaves a field out."""
    values = {**flat(released(key)), **changes}
    gone = {name for name, value in values.items() if value is None} | {"text_config"}
    return {name: value for name, value in values.items() if name not in gone}


def architecture(config: Config) -> Architecture:
    found = family(str(config["model_type"]))
    assert found is not None
    return found


def tensors(config: Config) -> list[LayoutTensor]:
    fields = Fields(flat(config), "config.json")
    return list(architecture(config).layout(fields, storage_of(fields)))


def caches(config: Config) -> Caches:
    return architecture(config).caches(Fields(flat(config), "config.json"))
