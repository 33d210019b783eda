"""Knows no clock and no core: chooses the number of threads of a step from how long steps took.

Fewer threads are faster where another program keeps a core busy: the step waits at every barrier
for the thread that shares it. Measured on 2 cores, one of them busy: 2 threads fall to a third of
their quiet speed, 1 thread keeps half of it. Nothing tells when the neighbour comes or goes, so
counts are tried: for one step, and for three where the first was not clearly slower.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

Direction = Literal[-1, 1]

_WINDOW: Final = 5
_RECENT: Final = 3
_TRIAL_STEPS: Final = 3
# A median this much above the best one of the same count: somebody else has come.
_JUMP: Final = 1.5
_CLEARLY_SLOWER: Final = 1.15
_FASTER: Final = 0.92
# Fewer threads at a speed gained by more than memory bandwidth explains: cores are contended.
_CONTENDED: Final = 1.25
# Steps before a count is tried again, and how they grow with each rejection. A trial of one step
# fewer threads costs less than one step: over 128 quiet steps two are made, about 1 %.
# More threads are tried again sooner: a few slow steps may have been chance.
_FIRST_WAIT: Final[dict[Direction, int]] = {-1: 16, 1: 4}
_GROWTH: Final[dict[Direction, int]] = {-1: 4, 1: 2}
_LONGEST_WAIT: Final[dict[Direction, int]] = {-1: 4096, 1: 256}
# A trial among many busy cores can take fifty steps' time. It must be this rare.
_COST: Final = 0.02
_RAREST: Final = 4096
_AFTER_REJECTION: Final = 8
_LASTING: Final = 64


@dataclass(frozen=True, slots=True)
class ThreadRange:
    """Where the engine starts, and between which counts its measurements move it."""

    start: int
    maximum: int
    minimum: int = 1


class ThreadTuner:
    """Moves along a ladder of counts, one rung at a time, towards shorter decode steps.

    The count in use is compared with its neighbours only. A trial that fails makes the next one in
    its direction wait longer; a jump of the step time tries a lower count at once.
    """

    def __init__(self, threads: ThreadRange) -> None:
        self._ladder = _ladder(threads)
        self._at = self._ladder.index(min(threads.start, threads.maximum))
        self._window: deque[float] = deque(maxlen=_WINDOW)
        self._best: float | None = None
        self._trial: Direction | None = None
        self._trial_times: list[float] = []
        self._wait = dict(_FIRST_WAIT)
        # The first trial comes at once: a neighbour may have been there before us.
        self._due: dict[Direction, int] = {-1: 0, 1: 0}
        self._steps_here = 0
        self._since_rejection = _AFTER_REJECTION
        self._contended = False

    @property
    def decode_threads(self) -> int:
        """The count of the next decode step."""
        return self._ladder[self._at + (self._trial or 0)]

    @property
    def usual_threads(self) -> int:
        """The count of steps that say nothing of others: never one that is being tried."""
        return self._ladder[self._at]

    @property
    def prefill_threads(self) -> int:
        """All of them, which a prefill can use even where decode cannot, unless cores are
        contended."""
        return self._ladder[self._at] if self._contended else self._ladder[-1]

    def forget(self) -> None:
        """Steps are of another size from here on: their times compare with none before."""
        self._trial = None
        self._window.clear()
        self._best = None

    def observe(self, threads: int, seconds: float) -> int:
        """Take note of one decode step; returns the count of the next one."""
        if threads == self.decode_threads and len(self._ladder) > 1:
            if self._trial is None:
                self._watch(seconds)
            else:
                self._judge(self._trial, seconds)
        return self.decode_threads

    def _watch(self, seconds: float) -> None:
        self._window.append(seconds)
        self._steps_here += 1
        self._since_rejection += 1
        self._due[-1] -= 1
        self._due[1] -= 1
        if len(self._window) < _RECENT:
            return
        recent = list(self._window)[-_RECENT:]
        usual = median(self._window)
        self._best = usual if self._best is None else min(self._best, usual)
        jumped = max(usual, min(recent)) > _JUMP * self._best
        if jumped and self._since_rejection > _AFTER_REJECTION:
            self._due[-1] = 0
            # If fewer threads do not help, this is how long a step takes now: contexts grow.
            self._best = median(recent)
            self._window = deque(recent, maxlen=_WINDOW)
        directions: tuple[Direction, ...] = (-1, 1)
        for direction in directions:
            if self._due[direction] <= 0 and 0 <= self._at + direction < len(self._ladder):
                self._trial = direction
                self._trial_times.clear()
                return

    def _judge(self, direction: Direction, seconds: float) -> None:
        self._trial_times.append(seconds)
        usual = median(self._window)
        if len(self._trial_times) == 1 and seconds > _CLEARLY_SLOWER * usual:
            self._reject(direction, usual)
        elif len(self._trial_times) == _TRIAL_STEPS:
            tried = median(self._trial_times)
            if tried < _FASTER * usual:
                self._move(direction, usual / tried)
            else:
                self._reject(direction, usual)

    def _reject(self, direction: Direction, usual: float) -> None:
        lost = (sum(self._trial_times) - usual * len(self._trial_times)) / max(usual, 1e-9)
        self._trial = None
        self._since_rejection = 0
        self._postpone(direction, at_least=int(lost / _COST))

    def _postpone(self, direction: Direction, at_least: int = 0) -> None:
        longer = min(self._wait[direction] * _GROWTH[direction], _LONGEST_WAIT[direction])
        self._wait[direction] = longer
        self._due[direction] = min(max(longer, at_least), _RAREST)

    def _move(self, direction: Direction, gain: float) -> None:
        back: Direction = 1 if direction == -1 else -1
        self._at += direction
        self._trial = None
        self._window = deque(self._trial_times, maxlen=_WINDOW)
        self._best = None
        self._wait[direction] = _FIRST_WAIT[direction]
        # What helped once is tried again as soon as the window is full.
        self._due[direction] = 0
        if self._steps_here < _LASTING:
            # The last move did not last: trying it again soon would only swing to and fro.
            self._postpone(back)
        else:
            self._wait[back] = self._due[back] = _FIRST_WAIT[back]
        self._steps_here = 0
        if direction == -1:
            self._contended = self._contended or gain >= _CONTENDED
        elif self._at == len(self._ladder) - 1:
            self._contended = False


def _ladder(threads: ThreadRange) -> list[int]:
    """Counts in steps of a quarter, from the least to the most, with the start among them."""
    counts = {min(threads.start, threads.maximum)}
    count = threads.maximum
    while count >= max(1, threads.minimum):
        counts.add(count)
        count = count * 3 // 4
    return sorted(counts)
