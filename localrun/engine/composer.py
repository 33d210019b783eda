"""Knows no runner's calls: which tokens go into the next step.

Of every running stream its last token (and guesses, where they pay), and of the prompts not yet
read as much as does not stall the streams. Runners that take fewer sequences a forward than there
are get them in turns.
"""

from __future__ import annotations

from typing import Final

from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.costs import StepCosts
from localrun.engine.queue import rank
from localrun.engine.runner import Capabilities
from localrun.engine.sequence import Sequence, Work

# Rows of logits that guesses may make of a step, or eight a sequence: a plan has room for so many.
_MOST_VERIFIED: Final = 32


class Composer:
    """Puts together one step after the other for a runner of these ``limits``."""

    def __init__(self, limits: Capabilities, cache: PrefixCache, costs: StepCosts) -> None:
        self._limits = limits
        self._cache = cache
        self._costs = costs
        most = limits.max_tokens - 1
        depth = limits.rollback_depth
        self._drafts = most if depth is None else min(depth, most)

    @property
    def drafts(self) -> bool:
        """Whether the runner can take guesses back."""
        return self._drafts > 0

    def compose(self, active: list[Sequence]) -> list[Work]:
        """The next step's work of ``active``, all of which have timelines, within what the runner
        takes at once. Who takes a turn goes to the end of ``active``."""
        alone = next((each for each in active if each.alone), None)
        if alone is not None:
            _turn(active, [alone])
            return [self._work_alone(alone)]
        decoding: list[Sequence] = []
        reading: list[Sequence] = []
        for each in active:
            (decoding if each.decoding else reading).append(each)
        limit = self._limits
        if len(active) > limit.max_batch:
            return self._compose_in_turns(active, decoding, reading)
        verified = min(limit.max_tokens, max(_MOST_VERIFIED, 8 * limit.max_batch))
        most = max(0, min(self._drafts, verified // max(len(decoding), 1) - 1))
        works = [each.next(most) for each in decoding[: limit.max_tokens]]
        if not reading:
            return works  # the most steps by far: what a chunk would cost is nobody's question
        used = sum(len(work.tokens) for work in works)
        room = self._costs.chunk(used, limit.max_tokens - used, [each.missing for each in reading])
        return works + self._chunks(reading, room)

    def _compose_in_turns(
        self, active: list[Sequence], decoding: list[Sequence], reading: list[Sequence]
    ) -> list[Work]:
        """Those who waited longest come first: ``_turn`` has put them there."""
        chosen = active[: self._limits.max_batch]
        most = self._limits.max_tokens - len(chosen)
        room = self._costs.chunk(len(decoding), most, [each.missing for each in reading])
        share = max(1, room // max(1, sum(each in reading for each in chosen)))
        works = [
            each.next(self._drafts if len(chosen) == 1 else 0)
            if each.decoding
            else self._chunk(each, share)
            for each in chosen
        ]
        _turn(active, chosen)
        return works

    def _work_alone(self, sequence: Sequence) -> Work:
        if sequence.decoding:
            return sequence.next(0)
        return self._chunk(sequence, self._limits.max_tokens)

    def _chunks(self, reading: list[Sequence], room: int) -> list[Work]:
        """Prompts by rank, the shortest first; but where that is not the oldest, the oldest gets
        half of the room, so that it comes to an end too."""
        if not reading or room < 1:
            return []
        order = sorted(reading, key=lambda each: (rank(each), each.missing))
        oldest = next(each for each in reading if rank(each) == rank(order[0]))
        works = []
        if oldest is not order[0]:
            order.remove(oldest)
            works.append(self._chunk(oldest, max(1, room // 2)))
            room -= len(works[0].tokens)
        for sequence in order:
            if room < min(self._limits.least_chunk, sequence.missing):
                break
            works.append(self._chunk(sequence, room))
            room -= len(works[-1].tokens)
        return works

    def _chunk(self, sequence: Sequence, limit: int) -> Work:
        assert sequence.timeline is not None
        border = self._cache.border(sequence.timeline, sequence.tokens)
        if border is not None:
            limit = min(limit, border - len(sequence.timeline.tokens))
        return sequence.chunk(self._whole(max(1, limit), sequence.missing), border)

    def _whole(self, limit: int, missing: int) -> int:
        """``limit`` or a little less, so that what is left is no smaller than the least chunk."""
        least = self._limits.least_chunk
        lacks = least - (missing - limit)
        return limit - lacks if 0 < lacks < least and limit - lacks >= least else limit


def _turn(active: list[Sequence], chosen: list[Sequence]) -> None:
    active[:] = [each for each in active if each not in chosen] + chosen
