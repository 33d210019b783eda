"""Knows no token: how many guesses to verify in a step, from what steps cost and guesses won.

A step with guesses takes longer: by almost nothing where weights are read once for all rows (GPUs),
by nearly as much as steps of their own where each row is computed anew (CPUs; measured: 10 ms for
one row of a small model, 5 ms for each further one). So the cost of steps is measured by their
rows, and the number of guesses is the one that promises most tokens a second, over all sequences.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

_WINDOW: Final = 7
# What a further row is taken to cost before any was measured, in costs of the rows that were.
_UNKNOWN: Final = 0.25
# Guesses have to promise this much more than none: neither odds nor costs are exact.
_GAIN: Final = 1.05
# Guesses that do not pay at the costs last seen are tried all the same after so many steps on which
# they would, were rows free; the wait doubles while they do not pay.
_FIRST_WAIT: Final = 16
_LONGEST_WAIT: Final = 1024
_TRIAL: Final = 3
_PROMISING: Final = 0.6
# Chance of a guess that nothing is known of, and how fast it follows what is seen.
_RATE: Final = 0.7
_LEARNS: Final = 0.05
# Where fewer guesses than this chance get through, more of them change nothing.
_HOPELESS: Final = 0.02


class RowCosts:
    """Seconds of a step by the number of its rows."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seen: dict[int, deque[float]] = {}
        self._usual: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        if rows not in self._seen:
            self._seen[rows] = deque(maxlen=_WINDOW)
            insort(self._rows, rows)
        self._seen[rows].append(seconds)
        self._usual[rows] = median(self._seen[rows])

    def seconds(self, rows: int) -> float | None:
        """Between counts that were seen on a straight line, above them on that of all of them;
        None before any."""
        usual = self._usual.get(rows)
        if usual is not None or not self._rows:
            return usual
        at = bisect_left(self._rows, rows)
        if at == 0:
            return self._usual[self._rows[0]]
        low = self._rows[at - 1]
        if at < len(self._rows):
            high = self._rows[at]
            share = (rows - low) / (high - low)
            return self._usual[low] * (1 - share) + self._usual[high] * share
        first = self._rows[0]
        if first == low:
            each = _UNKNOWN * self._usual[low] / low
        else:
            each = max(0.0, self._usual[low] - self._usual[first]) / (low - first)
        return self._usual[low] + each * (rows - low)


class Pace:
    """Chooses for one sequence and one way of guessing. ``costs`` are fed by their owner.

    ``rate``: the part of its guesses that were right of late, given those before them were.
    """

    def __init__(self, costs: RowCosts) -> None:
        self.rate = _RATE
        self._costs = costs
        self._others = 0
        self._making = 0.0
        self._refused = 0
        self._wait = _FIRST_WAIT

    def length(self, most: int, odds: Sequence[float] | None = None) -> int:
        """How many guesses to verify next, at most ``most``; 0 is a plain step.

        odds: for each guess at hand the chance that it is right if those before it are. None where
            guesses have yet to be made: then the time that takes counts, and the odds are as usual.
        """
        making = 0.0
        if odds is None:
            odds, making = [self.rate] * most, self._making
        elif not odds or most < 1:
            return 0
        chosen = self._best(odds, most, making)
        if chosen or most < 1 or (making == 0.0 and odds[0] < _PROMISING):
            return chosen
        self._refused += 1
        if self._refused < self._wait or self._costs.seconds(1 + self._others) is None:
            return 0
        self._refused = 0
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return min(_TRIAL, most, len(odds))

    def observe(self, drafted: int, accepted: int, others: int, seconds: float) -> None:
        """One step of the sequence, in which other sequences had ``others`` tokens: of ``drafted``
        guesses ``accepted`` were right."""
        self._others = others
        if drafted == 0:
            return
        for right in [True] * accepted + [False] * (accepted < drafted):
            self.rate += _LEARNS * (right - self.rate)
        plain = self._costs.seconds(1 + others)
        if plain and (1 + others + accepted) * plain > (1 + others) * seconds:
            self._wait = _FIRST_WAIT

    def made(self, guesses: int, seconds: float) -> None:
        """Making so many guesses took so long."""
        if guesses:
            each = seconds / guesses
            self._making += (each - self._making) * (0.2 if self._making else 1.0)

    def _best(self, odds: Sequence[float], most: int, making: float) -> int:
        own = 1 + self._others
        plain = self._costs.seconds(own)
        if not plain:
            return 0
        best, best_speed = 0, _GAIN * own / plain
        chance = 1.0
        tokens = float(own)
        for count, right in enumerate(odds[:most], 1):
            chance *= right
            if chance < _HOPELESS:
                break
            tokens += chance
            seconds = self._costs.seconds(own + count)
            assert seconds is not None
            speed = tokens / (seconds + making * count)
            if speed > best_speed:
                best, best_speed = count, speed
        return best
