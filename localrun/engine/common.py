"""Knows no runner: how much two lists of tokens share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Fewer tokens than these are computed sooner than they are had in another way.
SHORT: Final = 32
_STEP: Final = 512


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the longest common prefix; fast where both are of one type."""
    end = min(len(held), len(prompt))
    for start in range(0, end, _STEP):
        stop = min(start + _STEP, end)
        if held[start:stop] != prompt[start:stop]:
            for at in range(start, stop):
                if held[at] != prompt[at]:
                    return at
    return end
