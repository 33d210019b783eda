"""Knows no tokens: lets no line out that is indented less than was asked for."""

from __future__ import annotations


class IndentMatcher:
    """Passes text through, up to the first line that begins with less than ``least`` spaces and
    tabs, an empty one too; the line on which the text begins may begin as it likes.

    A line break is held back until its line is known to be indented enough.
    """

    __slots__ = ("_held", "_least", "matched")

    def __init__(self, least: int) -> None:
        self._least = least
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that may be shown now. After such a line: nothing."""
        if self.matched:
            return ""
        shown: list[str] = []
        for character in text:
            if character == "\n" and not self._held:
                self._held = character
            elif not self._held:
                shown.append(character)
            elif character in " \t":
                self._held += character
                if len(self._held) > self._least:
                    shown.append(self.flush())
            else:
                self.matched, self._held = True, ""
                break
        return "".join(shown)

    def flush(self) -> str:
        """What was held: no more text comes, and all there was is indented enough."""
        held, self._held = self._held, ""
        return held
