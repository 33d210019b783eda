"""Knows no file: what earlier runs of a model on a machine say about the next one.

``localrun.learned`` keeps it; a plan takes it as a value, so that planning stays pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Residual:
    """Measured time over predicted time, of ``count`` runs: the middle one, and how far the others
    lie from it at most, as a share of the lesser (0.1 is a tenth). Predicted is what a
    plan says that had learned nothing."""

    ratio: float
    spread: float
    count: int


@dataclass(frozen=True, slots=True)
class Learned:
    """``decode`` and ``prefill`` are of plans of this kind (backend, numerics, tiers). ``picks``:
    how often a token picks the i-th most picked expert of a layer, in the mean over layers, sums to
    experts used; empty where too few tokens were seen (planner.md: 5,000)."""

    decode: Residual | None = None
    prefill: Residual | None = None
    picks: tuple[float, ...] = ()


NOTHING_LEARNED = Learned()
