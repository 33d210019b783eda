"""Knows no layer: where the time of a step goes, by what it was spent on.

A model says after each part of its work what that was; between two such marks lies the time of one
part. Where nobody measures, a mark is a call that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final, Literal

import torch

Term = Literal[
    "embedding",
    "attention",
    "compressor",
    "index",
    "rows",
    "experts",
    "engram",
    "streams",
    "head",
]
"""``attention`` are its projections and norms, ``rows`` what reads rows of the cache, ``index``
what scores and chooses them, ``compressor`` what makes them, ``experts`` the whole feed-forward
part with its router, ``streams`` the mixing of residual streams."""

Mark = Callable[[Term], None]


def unmeasured(term: Term) -> None:
    """Nobody looks at the clock."""


class Stopwatch:
    """Seconds by term, of all steps since ``restart``. On a device that computes behind the
    program's back every mark waits for it, so measured steps are slower."""

    def __init__(self, device: torch.device) -> None:
        self._waits: Final = device.type == "cuda"
        self._seconds: dict[Term, float] = {}
        self._last = 0.0
        self.restart()

    @property
    def seconds(self) -> Mapping[str, float]:
        return {str(name): spent for name, spent in self._seconds.items()}

    def take(self) -> Mapping[Term, float]:
        """Seconds by term since the last ``take`` or ``restart``; counting goes on."""
        taken, self._seconds = self._seconds, {}
        return taken

    def restart(self) -> None:
        """Call it right before a step: what passed since the last mark belongs to no term."""
        self._seconds = {}
        self.resume()

    def resume(self) -> None:
        """Go on counting, from here."""
        self._last = self._now()

    def mark(self, term: Term) -> None:
        now = self._now()
        self._seconds[term] = self._seconds.get(term, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize()
        return perf_counter()
