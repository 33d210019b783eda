"""Knows no runner: how much two lists of tokens share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Fewer tokens than these are computed sooner than they are had in another way.
SHORT: Final = 32
_STEP: Final = 512


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the longest common prefix; fastest where both are of one type."""
    end = min(len(held), len(prompt))
    for start in range(0, end, _STEP):
        stop = min(start + _STEP, end)
        if held[start:stop] != prompt[start:stop]:
            one, other = list(held[start:stop]), list(prompt[start:stop])
            if one != other:  # a list and a tuple always differ
                return start + _difference(one, other)
    return end


def _difference(one: list[int], other: list[int]) -> int:
    """Where two lists of one length differ first."""
    same, beyond = 0, len(one)
    while beyond - same > 1:
        middle = (same + beyond) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            beyond = middle
    return same
