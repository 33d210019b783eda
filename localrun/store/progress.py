"""Knows no terminal: what a long transfer tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One transfer at a time: ``start``, any number of ``advance``, ``finish`` in every case.

    Calls never overlap, but they may come from different threads. ``advance`` is negative where
    bytes have to be fetched again.
    """

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None: ...

    def advance(self, bytes: int) -> None: ...

    def finish(self) -> None: ...


class NoProgress:
    """Watches in silence."""

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        return None

    def advance(self, bytes: int) -> None:
        return None

    def finish(self) -> None:
        return None
