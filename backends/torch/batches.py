"""Knows no model: the items of a step laid one behind another, those of a sequence together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from localrun.backends.torch.caches.cache import Cache
from localrun.backends.torch.clock import Mark, unmeasured
from localrun.backends.torch.model import Span, Step
from localrun.backends.torch.sequences import Timeline
from localrun.engine.runner import BatchItem


@dataclass(slots=True)
class Appended:
    """What a step adds to one sequence."""

    timeline: Timeline
    tokens: list[int] = field(default_factory=list)

    @property
    def cache(self) -> Cache:
        return self.timeline.cache


@dataclass(frozen=True, slots=True)
class Laid:
    """``wanted`` are places in the tokens of all ``parts``, in the order of the batch's rows."""

    parts: tuple[Appended, ...]
    wanted: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(len(part.tokens) for part in self.parts)

    def step(
        self, device: torch.device, watch: Callable[[int, Tensor], None], mark: Mark = unmeasured
    ) -> Step:
        tokens = [token for part in self.parts for token in part.tokens]
        positions = [
            part.cache.tokens + at for part in self.parts for at in range(len(part.tokens))
        ]
        return Step(
            _int64(tokens, device),
            _int64(positions, device),
            tuple(self._spans()),
            _int64(self.wanted, device),
            watch,
            mark,
        )

    def _spans(self) -> Iterator[Span]:
        start = 0
        for part in self.parts:
            stop = start + len(part.tokens)
            yield Span(part.cache, start, stop, part.cache.tokens)
            start = stop

    def position(self, row: int) -> int:
        """Of the token whose logits are ``row``, in its sequence."""
        at = self.wanted[row]
        for part in self.parts:
            if at < len(part.tokens):
                return part.cache.tokens + at
            at -= len(part.tokens)
        raise IndexError(row)


def laid(batch: Sequence[BatchItem], timelines: Sequence[Timeline]) -> Laid:
    """``timelines`` are those of the items; two items of one sequence follow each other in it."""
    parts: list[Appended] = []
    starts: list[tuple[int, int]] = []
    for item, timeline in zip(batch, timelines, strict=True):
        number = next((n for n, part in enumerate(parts) if part.timeline is timeline), len(parts))
        if number == len(parts):
            parts.append(Appended(timeline))
        starts.append((number, len(parts[number].tokens)))
        parts[number].tokens.extend(item.tokens)
    wanted: list[int] = []
    for item, (number, at) in zip(batch, starts, strict=True):
        first = sum(len(part.tokens) for part in parts[:number]) + at
        rows = range(first, first + len(item.tokens))
        wanted.extend({"none": rows[:0], "last": rows[-1:], "all": rows}[item.logits])
    return Laid(tuple(parts), tuple(wanted))


def _int64(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
