"""Knows no runner: what is held of one sequence, and what a cache counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from localrun.engine.runner import SequenceId


@dataclass(slots=True, eq=False)
class Timeline:
    """One sequence of the runner's, whose it is, and the tokens that the runner holds of it."""

    id: SequenceId
    owner: str
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class CacheCounters:
    """Since load: prompts that found something and the tokens it spared them, timelines that gave
    way for want of room, states restored and saved, and the bytes of the latter."""

    hits: int = 0
    spared: int = 0
    evictions: int = 0
    restores: int = 0
    saves: int = 0
    saved_bytes: int = 0
