"""Knows no runner: states in host memory, and the places of a prompt where they are worth having.

For runners whose cache cannot be cut anywhere: what they hold serves a prompt only as a whole. And
for those whose every step passes over what lies idle in their cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localrun.engine.cache.common import SHORT, common


def borders(prompt: Sequence[int], turn_ends: frozenset[int]) -> list[int]:
    """Lengths of ``prompt``, ascending, at which later prompts may part from it.

    After the turn before the last: an edited last message. After the last turn: another answer, or
    a next turn whose template tells the answer differently. All but the last token: the same prompt
    again, where no turn ends near. No two of them lie nearer than is worth a copy.
    """
    last = len(prompt) - 1
    ends: list[int] = []
    for at in range(last, -1, -1):
        if prompt[at] in turn_ends:
            ends.append(min(at + 1, last))
            if len(ends) == 2:
                break
    chosen: list[int] = []
    for length in (*reversed(ends), last):
        if length - (chosen[-1] if chosen else 0) >= SHORT:
            chosen.append(length)
    return chosen


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state of one owner's sequence when it held ``tokens``."""

    owner: str
    tokens: array[int]
    state: bytes


class Checkpoints:
    """At most ``budget_bytes`` of states; those unused for longest give way.

    ``whole`` is for runners that cannot cut a state: it serves only prompts that begin with all of
    it.
    """

    def __init__(self, budget_bytes: int, *, whole: bool) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._whole = whole
        self._kept: list[Checkpoint] = []  # the one to give up next comes first

    def takes(self, size: int) -> bool:
        """Whether a state of so many bytes would be kept."""
        return size <= self.budget_bytes

    def holds(self, owner: str, tokens: Sequence[int]) -> bool:
        """Whether one that is there does the service of a state of ``tokens``; it is renewed."""
        compact = array("i", tokens)
        for kept in self._kept:
            if kept.owner == owner and self._serves(kept.tokens, compact):
                self.used(kept)
                return True
        return False

    def put(self, owner: str, tokens: Sequence[int], state: bytes) -> list[Checkpoint]:
        """Keep ``state``; those that give way, but for what it replaces."""
        if not self.takes(len(state)):
            return []
        made = Checkpoint(owner, array("i", tokens), state)
        for kept in tuple(self._kept):
            if kept.owner == owner and self._serves(made.tokens, kept.tokens):
                self.discard(kept)
        self._kept.append(made)
        self.held_bytes += len(state)
        lost = []
        while self.held_bytes > self.budget_bytes:
            lost.append(self._kept[0])
            self.discard(lost[-1])
        return lost

    def _serves(self, held: array[int], wanted: array[int]) -> bool:
        """Whether a state of ``held`` does all that one of ``wanted`` would."""
        return held == wanted or (not self._whole and held[: len(wanted)] == wanted)

    def find(self, wanted: Sequence[int], owner: str) -> tuple[Checkpoint, int] | None:
        """The state that ``wanted`` shares most tokens with, and how many these are."""
        compact = array("i", wanted)
        shared = (
            (kept, common(kept.tokens, compact)) for kept in self._kept if kept.owner == owner
        )
        fitting = (
            (kept, length)
            for kept, length in shared
            if length == len(kept.tokens) or not self._whole
        )
        return max(fitting, key=lambda found: found[1], default=None)

    def used(self, checkpoint: Checkpoint) -> None:
        """Make it the last to give way, where it has not given way already."""
        if checkpoint in self._kept:
            self._kept.remove(checkpoint)
            self._kept.append(checkpoint)

    def discard(self, checkpoint: Checkpoint) -> None:
        """Give it up, where it has not given way already."""
        if checkpoint in self._kept:
            self._kept.remove(checkpoint)
            self.held_bytes -= len(checkpoint.state)

    def latest_first(self) -> Iterator[Checkpoint]:
        return reversed(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self.held_bytes = 0
