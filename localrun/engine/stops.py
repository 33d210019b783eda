"""Knows no tokens: finds stop strings in text that comes in pieces, and lets none of them out."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through, up to the first stop string.

    First is the one whose last character comes first, of several the longest, so the result does
    not depend on how the text is cut into pieces. What could begin a stop string is held back
    until it cannot. Each string is followed by its Knuth-Morris-Pratt automaton: the cost of a
    character is the number of strings, whatever their length.
    """

    __slots__ = ("_borders", "_held", "_states", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._borders = [_borders(stop) for stop in stops]
        self._states = [0] * len(self._stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown now. After a match: nothing."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text, before = self._held + text, len(self._held)
        for at in range(before, len(text)):
            longest = self._follow(text[at])
            if longest is not None:
                self.matched, self._held = longest, ""
                return text[: at + 1 - len(longest)]
        show = len(text) - max(self._states)
        self._held = text[show:]
        return text[:show]

    def flush(self) -> str:
        """What was held: no more text comes, so it cannot become a stop string."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _follow(self, character: str) -> str | None:
        """Take one step of every automaton; the longest string that ends here, if any does."""
        longest = None
        for index, stop in enumerate(self._stops):
            state = self._states[index]
            while state and stop[state] != character:
                state = self._borders[index][state - 1]
            if stop[state] == character:
                state += 1
            self._states[index] = state
            if state == len(stop) and (longest is None or state > len(longest)):
                longest = stop
        return longest


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = borders[length - 1]
        if stop[at] == stop[length]:
            length += 1
        borders[at] = length
    return borders
