"""Knows no runner: who guesses the next tokens of a sequence, and how many are worth a look.

The engine appends guesses behind the last token, draws from the target's logits at each of them in
order, and goes on while the draw is the guess; what was guessed wrong is taken back. So a guess
costs time and never changes the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from localrun.engine.drafting.pace import Pace, RowCosts
from localrun.engine.runner import Vocabulary

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

    def start(self, target: Vocabulary) -> None:
        """Before the first drafter: what ids mean.

        Raises:
            UsageError: this cannot guess for a model of that vocabulary.
            EngineError: it failed.
        """
        ...

    def drafters(self) -> tuple[Drafter, ...]:
        """For one sequence, those that are not costly first."""
        ...

    def close(self) -> None: ...


class Both:
    """Drafting by one, and by the other where it has nothing as good to say."""

    def __init__(self, first: Drafting, second: Drafting) -> None:
        self._draftings = (first, second)

    def start(self, target: Vocabulary) -> None:
        for drafting in self._draftings:
            drafting.start(target)

    def drafters(self) -> tuple[Drafter, ...]:
        return tuple(each for drafting in self._draftings for each in drafting.drafters())

    def close(self) -> None:
        for drafting in self._draftings:
            drafting.close()


class Speculation:
    """Guesses for one sequence, as many as pay."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        costs: RowCosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """costs: of the runner's steps, fed by who shares them among sequences; None keeps own."""
        self._own: RowCosts | None = None
        if costs is None:
            costs = self._own = RowCosts()
        self._ways = [(drafter, Pace(costs)) for drafter in drafters]
        self._chosen: Pace | None = None
        self._clock = clock

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """What to verify behind ``tokens`` in the next step: at most ``most`` guesses, often none.

        ``tokens`` are all of the sequence's, which only grow between calls.
        """
        most = min(most, MOST)
        found: list[int] = []
        for at, (drafter, pace) in enumerate(self._ways):
            guesses = self._ask(drafter, pace, tokens, most)
            if guesses:
                found, self._chosen = guesses, pace
                better = max((later.rate for _, later in self._ways[at + 1 :]), default=0.0)
                if drafter.odds[0] >= better:
                    break
        return found

    def _ask(self, drafter: Drafter, pace: Pace, tokens: Sequence[int], most: int) -> list[int]:
        if not drafter.costly:
            guesses = drafter.propose(tokens, most)
        else:
            most = pace.length(most)
            if most == 0:
                return []
            began = self._clock()
            guesses = drafter.propose(tokens, most)
            pace.made(len(guesses), self._clock() - began)
        return guesses[: pace.length(len(guesses), drafter.odds)]

    def observe(self, drafted: int, accepted: int, rows: int, seconds: float) -> None:
        """After each step of the sequence, also one without guesses: of ``drafted`` guesses
        ``accepted`` were right, and all sequences had ``rows`` tokens in the step."""
        if self._own is not None:
            self._own.observe(rows, seconds)
        for _, pace in self._ways:
            mine = pace is self._chosen
            others = rows - 1 - drafted
            pace.observe(drafted if mine else 0, accepted if mine else 0, others, seconds)

    def close(self) -> None:
        for drafter, _ in self._ways:
            drafter.close()
