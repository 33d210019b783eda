"""Knows no runner: who guesses the next tokens of a sequence, and how many are worth a look.

The engine appends guesses behind the last token, draws from the target's logits at each of them in
order, and goes on while the draw is the guess; what was guessed wrong is taken back. So a guess
costs time and never changes the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from localrun.engine.pace import Pace, RowCosts

# Most guesses of one step: more of them gain little and hold up the streams beside this one.
MOST: Final = 24


class Drafter(Protocol):
    """Guesses for one sequence. ``costly`` where making them takes time worth counting."""

    @property
    def costly(self) -> bool: ...

    @property
    def odds(self) -> Sequence[float]:
        """Of each guess proposed last, the chance that it is right if those before it are."""
        ...

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` guesses for what follows ``tokens``: all of the sequence's, which only
        grow between calls."""
        ...

    def close(self) -> None: ...


class Drafting(Protocol):
    """A way of guessing. One for each engine, used on its thread."""

    def drafter(self) -> Drafter: ...

    def close(self) -> None: ...


class Speculation:
    """Guesses for one sequence, as many as pay."""

    def __init__(
        self,
        drafter: Drafter,
        costs: RowCosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """costs: of the runner's steps; see ``Pace``."""
        self._drafter = drafter
        self._pace = Pace(costs)
        self._clock = clock

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """What to verify behind ``tokens`` in the next step: at most ``most`` guesses, often none.

        ``tokens`` are all of the sequence's, which only grow between calls.
        """
        most = min(most, MOST)
        if self._drafter.costly:
            most = self._pace.length(most)
            if most == 0:
                return []
        began = self._clock()
        guesses = self._drafter.propose(tokens, most)
        if self._drafter.costly:
            self._pace.made(len(guesses), self._clock() - began)
        return guesses[: self._pace.length(len(guesses), self._drafter.odds)]

    def observe(self, drafted: int, accepted: int, rows: int, seconds: float) -> None:
        """After each step of the sequence, also one without guesses: see ``Pace.observe``."""
        self._pace.observe(drafted, accepted, rows, seconds)

    def close(self) -> None:
        self._drafter.close()
