"""Knows no router: how often each expert of a model was picked, added up over runs.

Counts only: neither a token nor its place in a text is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localrun.learned.files import VERSION, Document, Kept
from localrun.learned.identity import Identity

ENOUGH_TOKENS: Final = 5000
MOST_PICKS: Final = 1 << 21
"""Of a layer: beyond it all its counts are halved, so that what is asked now counts most."""
Picks = Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Document(Document):
    model: Identity
    layers: Mapping[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        for layer, counts in self.layers.items():
            if min(counts, default=0) < 0:
                raise ValueError(f"layer {layer} was picked {min(counts)} times")


_FILES: Final = Kept("picks", _Document, Identity)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by layer and expert. ``note`` says why a file that is there was not used."""

    layers: Mapping[int, tuple[int, ...]]
    note: str = ""

    def shares(self, used: int) -> tuple[float, ...]:
        """How often a token picks the i-th most picked expert of a layer, in the mean over those
        layers that saw enough tokens; ``used`` are picked for each. Empty where none did."""
        enough = [counts for counts in self.layers.values() if sum(counts) >= ENOUGH_TOKENS * used]
        if not enough or not used:
            return ()
        ranked = [
            [used * count / sum(counts) for count in sorted(counts, reverse=True)]
            for counts in enough
        ]
        width = max(map(len, ranked))
        return tuple(
            sum(shares[at] for shares in ranked if at < len(shares)) / len(ranked)
            for at in range(width)
        )


def load(folder: Path, model: Identity) -> Histogram:
    """What was picked so far. Never raises for what the file holds."""
    document, note = _FILES.read(folder, model.stem)
    if document is None or document.model != model:
        return Histogram({}, note)
    return Histogram(document.layers)


def add(folder: Path, model: Identity, picks: Picks) -> None:
    """Add a run's counts.

    Raises:
        OSError: the file cannot be written.
    """

    def changed(document: _Document | None) -> _Document:
        known = document.layers if document is not None and document.model == model else {}
        return _Document(VERSION, model, added(known, picks))

    _FILES.change(folder, model.stem, changed)


def added(known: Picks, picks: Picks) -> dict[int, tuple[int, ...]]:
    """Sums by layer and expert; of a layer that has other experts now, the new counts."""
    sums = {layer: tuple(counts) for layer, counts in known.items()}
    for layer, counts in picks.items():
        before = sums.get(layer, ())
        if len(before) != len(counts):
            before = (0,) * len(counts)
        both = [old + new for old, new in zip(before, counts, strict=True)]
        while sum(both) > MOST_PICKS:
            both = [count // 2 for count in both]
        sums[layer] = tuple(both)
    return sums
