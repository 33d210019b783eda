"""Knows no bytes: which experts of a layer lie in its places, and which give theirs up.

The least recently used goes first (LRU). Of those that are there the last ``card`` used belong on
devices: what an LRU of so few would hold is the beginning of what one of more holds, so one order
serves both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acquired:
    """Places by expert. ``hits`` are there, ``near`` those of them that belong on devices;
    ``misses`` have a place that they must be put into; ``left`` have none as long as others are
    needed."""

    hits: dict[int, int]
    near: frozenset[int]
    misses: dict[int, int]
    left: tuple[int, ...]


class Places:
    """Of one layer: ``count`` of them, 1 and more. ``card`` of the experts there are on devices:
    the last used, or where the arms are ``apart`` those in the first ``card`` places."""

    def __init__(self, count: int, card: int = 0, apart: bool = False) -> None:
        self.count, self.card, self._apart = count, min(card, count), apart
        self._free = list(range(count))[::-1]
        self._at: OrderedDict[int, int] = OrderedDict()  # the least recently used first
        self._near: OrderedDict[int, None] = OrderedDict()
        self._needed: set[int] = set()
        self._coming: set[int] = set()

    def __contains__(self, expert: int) -> bool:
        """Whether it lies in its place, whole."""
        return expert in self._at and expert not in self._coming

    @property
    def number(self) -> int:
        """Of experts that are there."""
        return len(self._at) - len(self._coming)

    @property
    def held(self) -> tuple[int, ...]:
        """Experts that are there, the least recently used first."""
        return tuple(expert for expert in self._at if expert not in self._coming)

    def acquire(self, experts: Sequence[int], on_card: Collection[int] = ()) -> Acquired:
        """Places for a group, each expert once, in the order of their use. All of them are needed,
        until ``let_go``: they keep their places. Of arms that are apart see ``claim``."""
        hits = {expert: self._at[expert] for expert in experts if expert in self}
        near = frozenset(expert for expert in hits if self._is_near(expert))
        self._needed.update(hits)
        misses: dict[int, int] = {}
        left: list[int] = []
        for expert in experts:
            if expert in hits:
                self._use(expert)
            elif (place := self.claim(expert, expert in on_card)) is not None:
                misses[expert] = place
            else:
                left.append(expert)
        return Acquired(hits, near, misses, tuple(left))

    def claim(self, expert: int, on_card: bool = False) -> int | None:
        """A place for an expert that is not there: a free one, else that of whichever was least
        recently used of those that nobody needs, which loses it. None where all are needed. Where
        arms are apart it is of the arm that is asked for, unless that has none."""
        place = self._vacant(on_card)
        if place is None:
            return None
        self._at[expert] = place
        self._needed.add(expert)
        self._coming.add(expert)
        self._use(expert)
        return place

    def _vacant(self, on_card: bool) -> int | None:
        if not self._free:
            loose = (each for each in self._at if each not in self._needed)
            if self._apart:
                given_up = min(loose, key=lambda each: self._is_near(each) != on_card, default=None)
            else:
                given_up = next(loose, None)
            if given_up is None:
                return None
            self.drop(given_up)
        if self._apart:
            self._free.sort(key=lambda place: ((place < self.card) == on_card, -place))
        return self._free.pop()

    def _is_near(self, expert: int) -> bool:
        return self._at[expert] < self.card if self._apart else expert in self._near

    def _use(self, expert: int) -> None:
        self._at.move_to_end(expert)
        self._near[expert] = None
        self._near.move_to_end(expert)
        if len(self._near) > self.card:
            self._near.popitem(last=False)

    def arrived(self, expert: int) -> None:
        """It lies in the place that was claimed."""
        self._coming.discard(expert)

    def let_go(self, experts: Iterable[int]) -> None:
        """They stay until others want their places."""
        self._needed.difference_update(experts)

    def drop(self, expert: int) -> None:
        """It is not there, or did not come; its place is free."""
        self._free.append(self._at.pop(expert))
        self._near.pop(expert, None)
        self._needed.discard(expert)
        self._coming.discard(expert)

    def abandon(self) -> None:
        """Nobody needs any; what has not come does not."""
        self._needed.clear()
        for expert in tuple(self._coming):
            self.drop(expert)

    def shrink(self, count: int) -> None:
        """Only the first ``count`` places stay, 1 and more; what lies in others is dropped."""
        for expert, place in tuple(self._at.items()):
            if place >= count:
                self.drop(expert)
        self._free = [place for place in self._free if place < count]
        self.count, self.card = min(self.count, count), min(self.card, count)
        while len(self._near) > self.card:
            self._near.popitem(last=False)
