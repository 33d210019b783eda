"""Knows no runner: who waits, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from localrun.engine.limits import MAX_WAITING
from localrun.engine.request import Priority
from localrun.engine.sequence import Sequence
from localrun.errors import BusyError

# One client cannot take every place: the rest is for those who come while it floods.
MAX_WAITING_OF_ONE: Final = MAX_WAITING * 3 // 4
# What is too large for the room there is lets so many past; then room is kept for it.
MOST_OVERTAKEN: Final = 16
_RANKS: Final[dict[Priority, int]] = {"interactive": 0, "normal": 1, "background": 2}


def rank(sequence: Sequence) -> int:
    """0 goes first."""
    return _RANKS[sequence.request.priority]


class Queue:
    """At most ``MAX_WAITING`` sequences. Not safe for threads: whoever uses it holds a lock.

    By rank first; within a rank the client with the fewest running sequences, then the one served
    longest ago; within a client in the order they came. Clients whose names are alike up to a ``/``
    have one share among them: more names bring nobody more turns or places.
    """

    def __init__(self) -> None:
        self._waiting: list[Sequence] = []
        self._served: dict[str, int] = {}
        self._turns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def put(self, sequence: Sequence) -> None:
        """Raises BusyError where no place is left, or none for this client."""
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests are waiting already")
        mine = _share(sequence)
        if sum(_share(each) == mine for each in self._waiting) >= MAX_WAITING_OF_ONE:
            raise BusyError(f"{MAX_WAITING_OF_ONE} requests of this client are waiting already")
        self._waiting.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """One that had begun and gave way: it goes on before others of its client."""
        self._waiting.insert(0, sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Whether it was waiting."""
        if sequence not in self._waiting:
            return False
        self._waiting.remove(sequence)
        return True

    def clear(self) -> list[Sequence]:
        """All who waited."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def next(
        self, running: Iterable[Sequence], ready: Callable[[Sequence], bool]
    ) -> Sequence | None:
        """Take out whose turn it is among those that are ``ready``."""
        first: dict[tuple[int, str], Sequence] = {}
        passed: list[Sequence] = []
        for sequence in self._waiting:
            key = (rank(sequence), sequence.request.client)
            if key in first:
                continue
            if ready(sequence):
                first[key] = sequence
            else:
                passed.append(sequence)
        # Room is kept by letting nobody else in, but who is more urgent or only comes to its end.
        limit = min((rank(each) for each in passed if _is_due(each)), default=len(_RANKS))
        chosen = self._fairest(
            [each for each in first.values() if each.cancelled or rank(each) < limit], running
        )
        if chosen is None:
            return None
        self._waiting.remove(chosen)
        if not chosen.cancelled:
            for each in passed:
                each.overtaken += rank(each) >= rank(chosen)
        self._note_turn(chosen)
        return chosen

    def _fairest(self, found: list[Sequence], running: Iterable[Sequence]) -> Sequence | None:
        counts: Counter[str] = Counter()
        for each in running:
            counts.update({_share(each), each.request.client})

        def place(each: Sequence) -> tuple[int, ...]:
            mine, client = _share(each), each.request.client
            return (
                rank(each),
                not _is_due(each),
                counts[mine],
                self._served.get(mine, 0),
                counts[client],
                self._served.get(client, 0),
            )

        return min(found, key=place, default=None)

    def _note_turn(self, sequence: Sequence) -> None:
        self._turns += 1
        for name in (_share(sequence), sequence.request.client):
            self._served[name] = self._turns
        # Clients come and go; those without a request lose nothing by being forgotten.
        if len(self._served) > 4 * MAX_WAITING:
            here = {each.request.client for each in self._waiting}
            here |= {_share(each) for each in self._waiting}
            self._served = {name: turn for name, turn in self._served.items() if name in here}


def _share(sequence: Sequence) -> str:
    return sequence.request.client.partition("/")[0]


def _is_due(sequence: Sequence) -> bool:
    return sequence.overtaken >= MOST_OVERTAKEN
