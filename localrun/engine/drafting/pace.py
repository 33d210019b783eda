"""Knows no token: how many guesses to verify in a step, from what steps cost and guesses won.

A step with guesses takes longer: by almost nothing where weights are read once for all rows (GPUs),
by nearly as much as steps of their own where each row is computed anew (CPUs). So the cost of steps
is measured by their rows, and the number of guesses is the one that promises most tokens a second,
over all sequences.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from statistics import median, median_low
from typing import Final

# Steps of each number of rows that are remembered, and of all rows for the level: when that has
# moved, most of the former must still be of before.
_WINDOW: Final = 15
_LATEST: Final = 5
# Steps kept until somebody asks; older ones say nothing that these do not.
_UNREAD: Final = 64
# What a further row is taken to cost before any was measured, in costs of the rows that were.
_UNKNOWN: Final = 0.5
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
    """Seconds of a step by the number of its rows.

    Other programs slow all steps alike, at times many times over. So what is kept of a step is how
    it compares with the level of the latest ones, and a count of rows that was seen in a bad moment
    is not taken for a dear one.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._usual: dict[int, float] = {}
        # Counts that were seen, rising, and what they cost at level 1: more rows never cost less.
        self._rows: list[int] = []
        self._costs: list[float] = []
        self._latest: deque[float] = deque([1.0], maxlen=_LATEST)
        self._level = 1.0
        self._spread = 0.0
        self._unread: deque[tuple[int, float]] = deque(maxlen=_UNREAD)

    def observe(self, rows: int, seconds: float) -> None:
        """One step. What it says is worked out when somebody asks: steps are many."""
        self._unread.append((rows, seconds))

    def _read(self) -> None:
        while self._unread:
            self._learn(*self._unread.popleft())

    def _learn(self, rows: int, seconds: float) -> None:
        seen = self._seen.get(rows)
        if seen is None:
            seen = self._seen[rows] = deque(maxlen=_WINDOW)
            insort(self._rows, rows)
        elif usual := self._usual[rows]:
            self._latest.append(seconds / usual)
            level = self._level = median_low(self._latest) or 1.0
            self._spread = median(abs(each - level) for each in self._latest) / level
        seen.append(seconds / self._level)
        self._usual[rows] = median(seen)
        self._costs = list(accumulate((self._usual[each] for each in self._rows), max))

    def seconds(self, rows: int) -> float | None:
        """Between counts that were seen on a straight line, above them on that of all of them;
        None before any."""
        self._read()
        if not self._rows:
            return None
        at = bisect_left(self._rows, rows)
        if at < len(self._rows) and (at == 0 or self._rows[at] == rows):
            return self._level * self._costs[at]
        low, cost = self._rows[at - 1], self._costs[at - 1]
        if at < len(self._rows):
            each = (self._costs[at] - cost) / (self._rows[at] - low)
        elif at == 1:
            each = _UNKNOWN * cost / low
        else:
            each = (cost - self._costs[0]) / (low - self._rows[0])
        return self._level * (cost + each * (rows - low))

    def at_most(self, rows: int) -> float | None:
        """The same where it may be more: few steps of so many rows tell little while the machine is
        not quiet."""
        usual = self.seconds(rows)
        steps = len(self._seen.get(rows, ())) or 0.5
        return usual and usual * (1.0 + self._spread / math.sqrt(steps))


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
        self._trying = False

    def length(self, most: int, odds: Sequence[float] | None = None) -> int:
        """How many guesses to verify next, at most ``most``; 0 is a plain step.

        odds: for each guess at hand the chance that it is right if those before it are. None where
            guesses have yet to be made: then the time that takes counts, and the odds are as usual.
        """
        if most < 1:
            return 0
        if odds is None:
            chosen = self._best([self.rate] * most, self._making)
            self._trying = not chosen and self._is_due()
            return min(_TRIAL, most) if self._trying else chosen
        odds = odds[:most]
        if self._trying:
            # What was made for a trial is tried, whatever its odds.
            self._trying = False
            return len(odds)
        chosen = self._best(odds, 0.0)
        if chosen or not odds or odds[0] < _PROMISING or not self._is_due():
            return chosen
        return min(_TRIAL, len(odds))

    def _is_due(self) -> bool:
        """Whether a trial is, now that guesses were refused once more."""
        if self._costs.seconds(1 + self._others) is None:
            return False
        self._refused += 1
        if self._refused < self._wait:
            return False
        self._refused = 0
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True

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

    def _best(self, odds: Sequence[float], making: float) -> int:
        own = 1 + self._others
        plain = self._costs.seconds(own)
        if not plain:
            return 0
        best, best_speed = 0, _GAIN * own / plain
        chance = 1.0
        tokens = float(own)
        for count, right in enumerate(odds, 1):
            chance *= right
            if chance < _HOPELESS:
                break
            tokens += chance
            seconds = self._costs.at_most(own + count)
            assert seconds is not None
            speed = tokens / (seconds + making * count)
            if speed > best_speed:
                best, best_speed = count, speed
        return best
