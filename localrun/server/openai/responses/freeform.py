"""Knows no events: the one string of a call's arguments, read while they come.

The model calls a tool of free input as a function, ``{"input": "…"}``, and the client wants what is
within the quotes.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic_core import from_json

_OPENING: Final = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Longer than any opening that a reader or a grammar writes.
_LONGEST_OPENING: Final = 64
_PLAIN: Final = re.compile(r'[^"\\]+')
_SIMPLE: Final = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
_REPLACEMENT: Final = "\ufffd"


class FreeformInput:
    """``feed`` gives what is certain of the input, ``finish`` the rest, once."""

    def __init__(self) -> None:
        self._state: Literal["opening", "inside", "closed", "other"] = "opening"
        self._buffer = ""

    def feed(self, piece: str) -> str:
        if self._state == "closed":
            return ""
        self._buffer += piece
        if self._state == "opening":
            found = _OPENING.match(self._buffer)
            if found is not None:
                self._state, self._buffer = "inside", self._buffer[found.end() :]
            elif len(self._buffer) > _LONGEST_OPENING:
                self._state = "other"
        return self._read() if self._state == "inside" else ""

    def finish(self) -> str:
        """Arguments of another shape: the one text in them, or all of them as they are."""
        rest, self._buffer = self._buffer, ""
        if self._state in ("inside", "closed"):
            return ""
        try:
            value = from_json(rest or "{}")
        except ValueError:
            return rest
        if value == {}:
            return ""
        if isinstance(value, str):
            return value
        texts = list(value.values()) if isinstance(value, dict) else []
        if isinstance(value, dict) and isinstance(value.get("input"), str):
            texts = [value["input"]]
        return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else rest

    def _read(self) -> str:
        """Decode what is whole in the buffer; half an escape is kept for the next piece."""
        said: list[str] = []
        at, text = 0, self._buffer
        while at < len(text):
            if plain := _PLAIN.match(text, at):
                said.append(plain[0])
                at = plain.end()
            elif text[at] == '"':
                self._state, at = "closed", len(text)
            else:
                escape = _escape(text, at)
                if escape is None:
                    break
                said.append(escape[0])
                at += escape[1]
        self._buffer = text[at:]
        return "".join(said)


def _escape(text: str, at: int) -> tuple[str, int] | None:
    """What the escape at ``at`` stands for and how long it is; None where its end is missing."""
    kind = text[at + 1 : at + 2]
    if not kind:
        return None
    if kind != "u":
        return _SIMPLE.get(kind, kind), 2
    unit = _unit(text, at)
    if unit is None:
        return None
    if not 0xD800 <= unit < 0xE000:
        return chr(unit), 6
    if unit >= 0xDC00:
        return _REPLACEMENT, 6
    following = text[at + 6 : at + 8]
    if not "\\u".startswith(following):
        return _REPLACEMENT, 6
    low = _unit(text, at + 6)
    if low is None:
        return None
    if not 0xDC00 <= low < 0xE000:
        return _REPLACEMENT, 6
    return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)), 12


def _unit(text: str, at: int) -> int | None:
    digits = text[at + 2 : at + 6]
    if len(digits) < 4:
        return None
    try:
        return int(digits, 16)
    except ValueError:
        return ord(_REPLACEMENT)
