"""Knows no family: the configurations of released models, kept as facts.

One config.json a model in ``geometries/``. ``_hub_id`` names its repository; ``_check`` holds what
was counted and published of its parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import cast

from localrun.errors import ModelNotFoundError

_FOLDER = "geometries"


def names() -> tuple[str, ...]:
    """Every model, in order."""
    found = (item.name for item in files("localrun.models").joinpath(_FOLDER).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


def geometry(name: str) -> Mapping[str, object]:
    """The fields of one.

    Raises:
        ModelNotFoundError: there is none by that name.
    """
    if name not in names():
        raise ModelNotFoundError(f"{name}: no geometry by that name is kept")
    path = files("localrun.models").joinpath(_FOLDER, f"{name}.json")
    return cast(Mapping[str, object], json.loads(path.read_text(encoding="utf-8")))
