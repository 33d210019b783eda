"""Knows no model: the names of tool calls as Anthropic's clients expect them, and back.

Theirs are ``toolu_`` and letters, digits, ``_`` and ``-``. Some models give a call an id that their
template wants to see again (Kimi's ``functions.get:0``), so it travels within.
"""

from __future__ import annotations

from typing import Final

_PREFIX: Final = "toolu_"
_MADE: Final = "call_"
_CARRIED: Final = f"{_PREFIX}own_"


def told_id(id: str) -> str:
    """The id of a call as the client is told it."""
    if id.startswith(_MADE):
        return _PREFIX + id.removeprefix(_MADE)
    return _CARRIED + id.encode().hex()


def own_id(told: str) -> str:
    """The id that ``told_id`` was given, where the model itself had chosen it; else as told."""
    if not told.startswith(_CARRIED):
        return told
    try:
        return bytes.fromhex(told.removeprefix(_CARRIED)).decode()
    except ValueError:
        return told
