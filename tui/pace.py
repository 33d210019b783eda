"""Knows no clock and no widget: how fast an answer comes, from when its pieces came."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 2.0


@dataclass(slots=True)
class Pace:
    """Counts the pieces of one answer. A piece is a token or a few: exact counts come at its end.

    Times are seconds of any one clock.
    """

    pieces: int = 0
    _first: float | None = None
    _last: float = 0.0
    _recent: deque[float] = field(default_factory=deque)

    def piece(self, now: float) -> None:
        """One piece arrived at ``now``."""
        self.pieces += 1
        self._first = now if self._first is None else self._first
        self._last = now
        self._recent.append(now)

    def now_tps(self, now: float) -> float | None:
        """Pieces a second over the last two seconds; None before there is a rate."""
        while self._recent and now - self._recent[0] > WINDOW_S:
            self._recent.popleft()
        if self._first is None or now - self._first <= 0:
            return None
        return len(self._recent) / min(WINDOW_S, now - self._first)

    @property
    def mean_tps(self) -> float | None:
        """Pieces a second from the first to the last; None before the second."""
        if self._first is None or self._last <= self._first:
            return None
        return (self.pieces - 1) / (self._last - self._first)
