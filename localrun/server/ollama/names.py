"""Knows no models: how Ollama's clients write a model's name.

Every name of Ollama's has a tag, and ``latest`` is that of a model that was given none; some of its
clients put it behind a name before they look for it in a list.
https://docs.ollama.com/api#model-names
"""

from __future__ import annotations

from typing import Final

_LATEST: Final = ":latest"


def plain(name: str) -> str:
    """The name as it is known here: ``smollm2`` for ``smollm2:latest``."""
    return name.removesuffix(_LATEST)


def tagged(name: str) -> str:
    """The name as lists show it: ``smollm2:latest`` for ``smollm2``."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST
