"""Knows no runner and no clock: what steps have cost so far, and how much of a prompt one may take.

A prompt beside running streams comes in chunks, so that a step with a chunk takes about ``STRETCH``
times a step without. What both cost is measured, by the number of rows, as it goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from localrun.engine.drafting.pace import RowCosts

# A running stream keeps about half its speed while a prompt is read, whatever its length.
STRETCH: Final = 2.0
# However dear a prompt's tokens are: it has to come to an end.
LEAST_CHUNK: Final = 8
# Before anything was measured.
_FIRST_CHUNK: Final = 16
# Prompts that are read in less are short. They may stretch a step by so much: many at once are
# better served together than one after the other, and a reader hardly sees such a pause.
SHORT_S: Final = 0.5
PAUSE_S: Final = 0.25
_WINDOW: Final = 9


class StepCosts:
    """Seconds of steps by their ``rows`` (tokens of running streams), and of a prompt's token."""

    def __init__(self) -> None:
        self.rows = RowCosts()
        self._per_token: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, rows: int, chunk: int, seconds: float) -> None:
        """One step of ``rows`` drawn or guessed tokens and ``chunk`` tokens of prompts."""
        if chunk == 0:
            self.rows.observe(rows, seconds)
            return
        alone = self.rows.seconds(rows) if rows else 0.0
        if alone is None:
            # A row costs at least what a prompt's token does.
            alone, chunk = 0.0, rows + chunk
        self._per_token.append(max(seconds - alone, 0.0) / chunk)

    @property
    def per_token(self) -> float | None:
        """Seconds that a token of a prompt takes; None before any was read."""
        if not self._per_token:
            return None
        # A neighbour makes steps longer and nothing makes them shorter: not the median.
        return max(sorted(self._per_token)[len(self._per_token) // 3], 1e-9)

    def chunk(self, rows: int, most: int, waiting: Sequence[int] = (1 << 62,)) -> int:
        """How many tokens of prompts may join a step of ``rows``; at most ``most``.

        ``waiting`` are the tokens that the prompts yet lack.
        """
        if rows == 0:
            return most
        each = self.per_token
        if each is None:
            return min(most, _FIRST_CHUNK)
        alone = self.rows.seconds(rows)
        room = (STRETCH - 1.0) * (rows * each if alone is None else alone)
        if min(waiting, default=0) * each <= SHORT_S:
            room = max(room, PAUSE_S)
        # Whole multiples: fewer shapes of a step are seen.
        return min(most, max(LEAST_CHUNK, int(room / each) // LEAST_CHUNK * LEAST_CHUNK))
