"""Knows no runner: states in host memory, and the places of a prompt where they are worth having.

For runners whose cache cannot be cut anywhere: what they hold serves a prompt only as a whole.
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
    """At most ``budget_bytes`` of states; those unused for longest give way."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._kept: list[Checkpoint] = []  # the one to give up next comes first

    def wants(self, owner: str, tokens: Sequence[int], size: int) -> bool:
        """Whether a state of about ``size`` bytes would be kept; one that is there is renewed."""
        compact = array("i", tokens)
        for kept in self._kept:
            if kept.owner == owner and kept.tokens == compact:
                self.used(kept)
                return False
        return len(tokens) > 0 and size <= self.budget_bytes

    def put(self, owner: str, tokens: Sequence[int], state: bytes) -> None:
        if len(state) > self.budget_bytes:
            return
        self._kept.append(Checkpoint(owner, array("i", tokens), state))
        self.held_bytes += len(state)
        while self.held_bytes > self.budget_bytes:
            self.discard(self._kept[0])

    def find(self, wanted: Sequence[int], owner: str) -> Checkpoint | None:
        """The longest state all of whose tokens ``wanted`` begins with."""
        compact = array("i", wanted)
        fitting = (
            kept
            for kept in self._kept
            if kept.owner == owner and common(kept.tokens, compact) == len(kept.tokens)
        )
        return max(fitting, key=lambda kept: len(kept.tokens), default=None)

    def used(self, checkpoint: Checkpoint) -> None:
        """Make it the last to give way."""
        self._kept.remove(checkpoint)
        self._kept.append(checkpoint)

    def discard(self, checkpoint: Checkpoint) -> None:
        self._kept.remove(checkpoint)
        self.held_bytes -= len(checkpoint.state)

    def latest_first(self) -> Iterator[Checkpoint]:
        return reversed(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self.held_bytes = 0
