"""Knows no clock: how far predictions were from what was measured, by machine and kind of plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from localrun.hardware.measurements import Key
from localrun.learned.files import VERSION, Document, Kept
from localrun.learned.identity import Identity, Kind
from localrun.plan.learned import Residual

MOST_RUNS: Final = 20
_SETTLED: Final = 4
_MOST_ENTRIES: Final = 64


Ratios = tuple[float, float, float]
"""Of one run: its least, its middle and its greatest ratio, measured time over the time that was
predicted without what is learned."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The latest last."""

    decode: tuple[Ratios, ...] = ()
    prefill: tuple[Ratios, ...] = ()

    def __post_init__(self) -> None:
        for least, mid, most in (*self.decode, *self.prefill):
            if not (math.isfinite(most) and 0 < least <= mid <= most):
                raise ValueError(f"{least}, {mid}, {most} are no ratios of times")

    def with_one(self, decode: Ratios, prefill: Ratios) -> Runs:
        return Runs(
            (*self.decode, decode)[-MOST_RUNS:],
            (*self.prefill, prefill)[-MOST_RUNS:],
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    machine: Key
    kind: Kind
    runs: Runs


@dataclass(frozen=True, slots=True)
class _Document(Document):
    model: Identity
    entries: tuple[_Entry, ...]


_FILES: Final = Kept("runs", _Document, Key, Identity, Kind, Runs, _Entry)


@dataclass(frozen=True, slots=True)
class Residuals:
    """Of one model on one machine. ``note`` says why a file that is there was not used."""

    by_kind: tuple[tuple[Kind, Runs], ...] = ()
    note: str = ""

    def of(self, kind: Kind) -> Runs:
        return dict(self.by_kind).get(kind, Runs())


def load(folder: Path, model: Identity, machine: Key) -> Residuals:
    """What runs of ``model`` on ``machine`` taught. Never raises for what the file holds."""
    document, note = _FILES.read(folder, model.stem)
    if document is None or document.model != model:
        return Residuals((), note)
    mine = (entry for entry in document.entries if entry.machine == machine)
    return Residuals(tuple((entry.kind, entry.runs) for entry in mine))


def add(
    folder: Path, model: Identity, machine: Key, kind: Kind, *, decode: Ratios, prefill: Ratios
) -> None:
    """Remember one run.

    Raises:
        OSError: the file cannot be written. ValueError: a ratio is none.
    """

    def changed(document: _Document | None) -> _Document:
        if document is None or document.model != model:
            document = _Document(VERSION, model, ())
        place = (machine, kind)
        held = {(entry.machine, entry.kind): entry.runs for entry in document.entries}
        runs = held.pop(place, Runs()).with_one(decode, prefill)
        entries = (*(_Entry(*at, each) for at, each in held.items()), _Entry(*place, runs))
        return replace(document, entries=entries[-_MOST_ENTRIES:])

    _FILES.change(folder, model.stem, changed)


def ratios(predicted_tps: float, measured_tps: Sequence[float]) -> Ratios:
    """Of the repetitions of one run."""
    slowest, middle, fastest = min(measured_tps), median(measured_tps), max(measured_tps)
    return predicted_tps / fastest, predicted_tps / middle, predicted_tps / slowest


def residual(runs: Sequence[Ratios]) -> Residual | None:
    """The middle of all runs, and how far the repetitions of the later half lie from it; None
    without a run. Of few runs nobody knows which is the odd one: all of them count.

    What a machine once did counts for the middle only: a driver, a cooler or a disk that changed
    since must not keep the band wide forever.
    """
    if not runs:
        return None
    middle = median(mid for _, mid, _ in runs)
    first = len(runs) // 2 if len(runs) >= _SETTLED else 0
    later = [ratio for run in runs[first:] for ratio in run]
    # Half the time is twice the speed: both ways it is as far as the greater of both says.
    spread = max(max(ratio / middle, middle / ratio) - 1 for ratio in later)
    return Residual(middle, spread, len(runs))
