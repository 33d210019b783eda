"""Knows no format: names from strangers' files, made fit for one line of a message."""

from __future__ import annotations

_SHOWN = 80


def shown(name: str) -> str:
    """``name`` without characters that move a cursor or end a line, and never long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
