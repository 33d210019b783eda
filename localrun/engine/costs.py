"""Knows no runner and no clock: what steps have cost so far, and how much of a prompt one may take.

A prompt beside running streams comes in chunks, so that a step with a chunk takes no more than
``STRETCH`` times a step without. What both cost is measured, by the number of rows, as it goes.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from localrun.engine.pace import RowCosts

# A running stream keeps at least half its speed while one prompt is read, whatever its length.
STRETCH: Final = 2.0
LEAST_CHUNK: Final = 16
# Before anything was measured beside running streams.
_FIRST_CHUNK: Final = 32
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
        if alone is not None:
            self._per_token.append(max(seconds - alone, 0.0) / chunk)

    def chunk(self, rows: int, most: int, prompts: int = 1) -> int:
        """How many tokens of prompts may join a step of ``rows``; at most ``most``.

        The more ``prompts`` wait for each running stream, the longer the streams wait for them:
        those without their first token count as much as those without their next.
        """
        if rows == 0:
            return most
        alone = self.rows.seconds(rows)
        if alone is None or not self._per_token:
            return min(most, _FIRST_CHUNK)
        room = (STRETCH * (1.0 + (prompts - 1) / rows) - 1.0) * alone
        fits = int(room / max(median(self._per_token), 1e-9))
        # Whole multiples: kernels work in tiles, and fewer shapes of a step are seen.
        return min(most, max(LEAST_CHUNK, fits // LEAST_CHUNK * LEAST_CHUNK))
