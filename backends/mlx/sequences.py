"""Knows no logits: the sequences of one model, each with the caches of its layers.

Arrays of mlx are never changed, only replaced: a copy of a cache shares them until either goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from localrun.backends.mlx import states
from localrun.backends.mlx.caches import arrays, copied, cut, evened
from localrun.engine.runner import SequenceId
from localrun.errors import EngineError


@dataclass(slots=True)
class Timeline:
    """One sequence. ``lost`` is set where a failed step left nothing that could be kept."""

    caches: list[Any]
    tokens: int = 0
    lost: bool = field(default=False)


class Sequences:
    """Up to ``limit`` of them, together at most ``cells`` tokens."""

    def __init__(self, make: Callable[[], list[Any]], *, limit: int, cells: int) -> None:
        self._make = make
        self._limit = limit
        self._cells = cells
        self._held: dict[SequenceId, Timeline] = {}

    def timeline(self, sequence: SequenceId) -> Timeline:
        try:
            return self._held[sequence]
        except KeyError:
            raise EngineError(f"sequence {sequence} does not exist") from None

    def writable(self, sequence: SequenceId) -> Timeline:
        """One that is about to take tokens."""
        found = self.timeline(sequence)
        if found.lost:
            raise EngineError(f"sequence {sequence} lost its tokens in a failed step")
        return found

    def room(self, tokens: int) -> None:
        """Raises EngineError where ``tokens`` more are too many for all sequences together."""
        if sum(each.tokens for each in self._held.values()) + tokens > self._cells:
            raise EngineError(f"no room is left in the context of {self._cells} tokens")

    def new(self) -> SequenceId:
        for at in range(self._limit):
            sequence = SequenceId(at)
            if sequence not in self._held:
                self._held[sequence] = Timeline(self._make())
                return sequence
        raise EngineError(f"all {self._limit} sequences are in use")

    def fork(self, sequence: SequenceId) -> SequenceId:
        source = self.timeline(sequence)
        self.room(source.tokens)
        copy = self.new()
        self._held[copy] = Timeline(copied(source.caches), source.tokens, source.lost)
        return copy

    def free(self, sequence: SequenceId) -> None:
        self.timeline(sequence)
        del self._held[sequence]

    def truncate(self, sequence: SequenceId, length: int) -> int:
        """See ModelRunner. What cannot be cut there is emptied."""
        found = self.timeline(sequence)
        if length < found.tokens:
            self.cut(found, max(0, length))
        found.lost = False
        return found.tokens

    def cut(self, found: Timeline, length: int) -> None:
        if length == 0 or not cut(found.caches, found.tokens - length):
            found.caches, found.tokens = self._make(), 0
        else:
            found.tokens = length

    def even(self, found: Timeline, length: int) -> None:
        """After a step that ended within a layer: as it was before, or emptied."""
        if evened(found.caches, length):
            found.tokens = length
        else:
            found.caches, found.tokens = self._make(), 0

    def empty(self, found: Timeline) -> None:
        """After a step of which nobody knows what it left."""
        found.caches, found.tokens, found.lost = self._make(), 0, True

    def save(self, sequence: SequenceId) -> bytes:
        found = self.timeline(sequence)
        return states.packed(found.caches, found.tokens)

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError where the state is none of this model's, or has no room."""
        caches = self._make()
        tokens = states.unpack(state, caches)
        self.room(tokens)
        sequence = self.new()
        self._held[sequence] = Timeline(caches, tokens)
        return sequence

    @property
    def nbytes(self) -> int:
        """Of all caches. What forks share is counted for each."""
        return sum(_nbytes(each.caches) for each in self._held.values())

    def clear(self) -> None:
        self._held.clear()


def _nbytes(caches: Sequence[Any]) -> int:
    return sum(array.nbytes for array in _all(caches))


def _all(caches: Iterable[Any]) -> list[mx.array]:
    return [array for cache in caches for array in arrays(cache)]
