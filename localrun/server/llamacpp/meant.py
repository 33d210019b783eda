"""Knows no wire: which model is meant by a client that names none.

llama.cpp's server has one model, so its clients say no name (or an empty one).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from localrun.errors import LocalrunError, ModelNotFoundError, RequestError
from localrun.server.models import Capability, ModelProvider

# So many headers are read to find a model that can do what is asked.
MOST_LOOKED_AT: Final = 16


async def meant(models: ModelProvider, name: str, *, fills: bool = False) -> str:
    """``name`` where there is one; else the one model that is loaded, else the first that is
    served. ``fills``: those that fill in text are meant, where there are any.

    Raises:
        RequestError: several are loaded that could be meant.
        ModelNotFoundError: none is served here.
    """
    if name:
        return name
    loaded = [model.id for model in models.loaded()]
    if fills and len(loaded) > 1:
        loaded = await _filling(models, loaded) or loaded
    if len(loaded) > 1:
        raise RequestError(
            f"several models are loaded ({', '.join(loaded)}): it is not clear which is meant",
            hint="name one as model",
            field="model",
        )
    return loaded[0] if loaded else await _first(models, fills=fills)


async def shown(models: ModelProvider, name: str) -> str:
    """As ``meant``, but of several that are loaded the first: nothing is made of it.

    Raises:
        ModelNotFoundError: none is served here.
    """
    loaded = models.loaded()
    return name or (loaded[0].id if loaded else await _first(models, fills=False))


async def _first(models: ModelProvider, *, fills: bool) -> str:
    names = [card.id for card in await asyncio.to_thread(models.names)]
    if not names:
        raise ModelNotFoundError("no model is served here", hint="`localrun pull` gets one")
    if fills and len(names) > 1:
        able = await asyncio.to_thread(_able, models, names[:MOST_LOOKED_AT], "insert")
        names = able or names
    return names[0]


async def _filling(models: ModelProvider, loaded: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in loaded:
        # Nothing is loaded for it: no other task runs between the look and the lease.
        if any(model.id == name for model in models.loaded()):
            async with models.lease(name) as model:
                if model.info.fim is not None:
                    found.append(name)
    return found


def _able(models: ModelProvider, names: Sequence[str], what: Capability) -> list[str]:
    found: list[str] = []
    for name in names:
        try:
            if what in models.facts(name).capabilities:
                found.append(name)
        except LocalrunError:
            # A file that cannot be read is no answer to a question about others.
            continue
    return found
