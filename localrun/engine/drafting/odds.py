"""Knows no token: how often guesses of one kind were right, learned as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# What is believed beforehand counts as so many guesses; old ones are forgotten at this rate.
_BELIEF: Final = 4.0
_KEPT: Final = 0.97


class Odds:
    """The chance that a guess is right, by its kind (0, 1, ...)."""

    __slots__ = ("_believed", "_right", "_seen")

    def __init__(self, believed: Sequence[float]) -> None:
        """believed: the chance of each kind before anything was seen, above 0 and below 1."""
        self._believed = believed
        self._right = [0.0] * len(believed)
        self._seen = [0.0] * len(believed)

    def __getitem__(self, kind: int) -> float:
        believed = self._believed[kind] * _BELIEF
        return (self._right[kind] + believed) / (self._seen[kind] + _BELIEF)

    def learn(self, kind: int, right: bool) -> None:
        self._right[kind] = self._right[kind] * _KEPT + right
        self._seen[kind] = self._seen[kind] * _KEPT + 1.0
