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
    """Keeps the timeline that ended last for the next prompt that begins alike.

    A runner may keep fewer tokens than it is asked to (``ModelRunner.truncate``); what a taken
    timeline's ``tokens`` say is what the runner holds.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._parked: Timeline | None = None

    def take(self, prompt: Sequence[int]) -> Timeline:
        """A timeline that holds a prefix of ``prompt``, at least one token short of all of it:
        the logits of the last position are needed, and only a forward gives them.

        Raises:
            EngineError: the runner has no sequence left or failed.
        """
        timeline, self._parked = self._parked, None
        if timeline is None:
            return Timeline(self._runner.new_sequence())
        length = min(common(timeline.tokens, prompt), len(prompt) - 1)
        if length < len(timeline.tokens):
            try:
                self.cut(timeline, length)
            except EngineError:
                self.drop(timeline)
                raise
        return timeline

    def cut(self, timeline: Timeline, length: int) -> None:
        """Cut to ``length`` tokens, or to what the runner could keep of them.

        Raises:
            EngineError: the runner failed; nobody knows what it holds.
        """
        kept = self._runner.truncate(timeline.id, length)
        del timeline.tokens[kept:]

    def park(self, timeline: Timeline) -> None:
        """Keep a timeline that is whole; the one before it gives way."""
        if self._parked is not None:
            self.drop(self._parked)
        self._parked = timeline

    def drop(self, timeline: Timeline) -> None:
        """Give back a timeline, also one whose state is in doubt."""
        # A runner that cannot free it either has nothing better to be told.
        with suppress(EngineError):
            self._runner.free(timeline.id)


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for at, (one, other) in enumerate(zip(held, prompt, strict=False)):
        if one != other:
            return at
    return min(len(held), len(prompt))
