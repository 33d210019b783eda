"""Knows no dialect: pieces of a streamed answer as bytes, quickly.

Nearly all pieces of an answer differ in one text alone, and thousands leave every second: what
stands around the text is encoded once.
"""

from __future__ import annotations

import json
from typing import Any


def server_sent(document: dict[str, Any], event: str | None = None) -> bytes:
    """One event. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + compact(document) + b"\n\n"


def json_line(document: dict[str, Any]) -> bytes:
    """One line of newline-delimited JSON."""
    return compact(document) + b"\n"


def compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class TextSlot:
    """A piece in which a text changes: the last empty string of ``empty`` is its place."""

    __slots__ = ("_after", "_before")

    def __init__(self, empty: bytes) -> None:
        self._before, found, self._after = empty.rpartition(b'""')
        assert found, "no empty string marks the text's place"

    def with_text(self, text: str) -> bytes:
        return self._before + json.dumps(text).encode() + self._after
