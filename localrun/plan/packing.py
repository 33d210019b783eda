"""Knows no model: how many of a row of things each card takes, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def packed(sizes: Sequence[int], free: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """How many of ``sizes`` go to each card, one after the other.

    As few cards as hold everything, the fastest first; the slowest of those takes what the others
    leave. So more memory on a card never moves anything to a slower one, but for a rest smaller
    than the next thing. Where not all of it fits, the slowest card is given too much.
    """
    ranked = sorted(range(len(free)), key=lambda card: (-speeds[card], card))
    ends = [0, *accumulate(sizes)]
    counts: list[int] = []
    for many in range(1, len(free) + 1):
        chosen = sorted(ranked[:many])
        if many < len(free) and sum(max(0, free[card]) for card in chosen) < ends[-1]:
            continue
        rest = ranked[many - 1]
        first, last = 0, len(sizes)
        counts = [0] * len(free)
        for card in (card for card in chosen if card < rest):
            counts[card] = _from_front(ends, first, last, free[card])
            first += counts[card]
        for card in reversed([card for card in chosen if card > rest]):
            counts[card] = _from_back(ends, first, last, free[card])
            last -= counts[card]
        counts[rest] = last - first
        if ends[last] - ends[first] <= free[rest]:
            break
    return counts


def _from_front(ends: Sequence[int], first: int, last: int, room: int) -> int:
    at = first
    while at < last and ends[at + 1] - ends[first] <= room:
        at += 1
    return at - first


def _from_back(ends: Sequence[int], first: int, last: int, room: int) -> int:
    at = last
    while at > first and ends[last] - ends[at - 1] <= room:
        at -= 1
    return last - at
