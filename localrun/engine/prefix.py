"""Knows no sampling: which tokens a runner already holds, and what of a new prompt they spare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from localrun.engine.runner import ModelRunner, SequenceId
from localrun.errors import EngineError


@dataclass(slots=True)
class Timeline:
    """One sequence of the runner's and the tokens in it."""

    id: SequenceId
    tokens: list[int] = field(default_factory=list)


class PrefixCache:
    """Keeps ended timelines for the next prompt that begins alike, ``capacity`` at most.

    A runner may keep fewer tokens than it is asked to (``ModelRunner.truncate``); what a taken
    timeline's ``tokens`` say is what the runner holds.
    """

    def __init__(self, runner: ModelRunner, capacity: int = 1) -> None:
        self._runner = runner
        self._capacity = capacity
        self._parked: list[Timeline] = []  # the one used last comes last

    def take(self, prompt: Sequence[int]) -> Timeline:
        """A timeline that holds a prefix of ``prompt``, at least one token short of all of it:
        the logits of the last position are needed, and only a forward gives them.

        Raises:
            EngineError: the runner has no sequence left or failed.
        """
        room = len(self._parked) < self._capacity
        best = max(self._parked, key=lambda parked: common(parked.tokens, prompt), default=None)
        if best is None or (room and common(best.tokens, prompt) == 0):
            return Timeline(self._runner.new_sequence())
        self._parked.remove(best)
        length = min(common(best.tokens, prompt), len(prompt) - 1)
        if length < len(best.tokens):
            try:
                kept = self._runner.truncate(best.id, length)
            except EngineError:
                self.drop(best)
                raise
            del best.tokens[kept:]
        return best

    def park(self, timeline: Timeline) -> None:
        """Keep a timeline that is whole; the oldest gives way."""
        self._parked.append(timeline)
        while len(self._parked) > self._capacity:
            self.drop(self._parked.pop(0))

    def drop(self, timeline: Timeline) -> None:
        """Give back a timeline, also one whose state is in doubt."""
        # A runner that cannot free it either has nothing better to be told.
        with suppress(EngineError):
            self._runner.free(timeline.id)

    def clear(self) -> None:
        while self._parked:
            self.drop(self._parked.pop())


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for at, (one, other) in enumerate(zip(held, prompt, strict=False)):
        if one != other:
            return at
    return min(len(held), len(prompt))
