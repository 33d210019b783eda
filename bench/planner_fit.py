"""Fits the planner's constants to published runs, and measures each source with the others' fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from published_runs import Run

from localrun.plan.constants import Constants
from localrun.plan.search import Solution

# A published figure is right to a few per cent, so errors beyond a factor are all alike.
_ROBUST = 0.25
# How far, as a logarithm, a constant may be from what is known of it at the cost of one row.
_TRUST = 0.2
# What is known of each apart from the rows: makers' and others' measurements of the parts.
KNOWN = Constants(
    gpu_wide=0.85,
    gpu_packed=0.78,
    unified=0.80,
    unpack=10.0,
    gpu_block=0.02,
    unified_block=0.05,
    handover=0.20,
    ram=0.75,
    core=14.0,
    portable=0.20,
    gpu_mfu=0.75,
    unified_mfu=0.60,
)
# Shares of a physical limit.
_MOST = {
    "gpu_wide": 0.95,
    "gpu_packed": 0.95,
    "unified": 0.95,
    "ram": 1.0,
    "portable": 1.0,
    "gpu_mfu": 1.0,
    "unified_mfu": 1.0,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A row that could be planned, with what was measured."""

    id: str
    run: Run
    solution: Solution
    decode: float | None
    prefill: float | None

    def predicted(self, fit: Constants) -> tuple[float, float]:
        """Decode and prefill in tokens a second."""
        made, task = self.solution.assignment, replace(self.solution.task, fit=fit)
        prompt = task.request.workload.prompt
        return 1e3 / task.token_ms(made), 1e3 * prompt / task.prefill_ms(made)


@dataclass(frozen=True, slots=True)
class Errors:
    """Signed errors as fractions of what was measured, by row."""

    decode: dict[str, float] = field(default_factory=dict)
    prefill: dict[str, float] = field(default_factory=dict)


def errors(cases: Sequence[Case], fit: Constants) -> Errors:
    """Of every case that has the figure."""
    found = Errors()
    for case in cases:
        decode, prefill = case.predicted(fit)
        if case.decode:
            found.decode[case.id] = decode / case.decode - 1
        if case.prefill:
            found.prefill[case.id] = prefill / case.prefill - 1
    return found


def loss(cases: Sequence[Case], fit: Constants) -> float:
    """Robust sum of squared log errors, and each constant's distance from what is known of it.

    A source alone must not move a constant far: each counts as one more row, whose error is the
    distance from the figure of the parts' makers or of others' measurements (``KNOWN``).
    """
    total = 0.0
    for case in cases:
        decode, prefill = case.predicted(fit)
        for real, guess in ((case.decode, decode), (case.prefill, prefill)):
            if real:
                total += math.log1p((math.log(guess / real) / _ROBUST) ** 2)
    for name, value in asdict(KNOWN).items():
        total += (math.log(getattr(fit, name) / value) / _TRUST) ** 2
    return total


def fitted(cases: Sequence[Case], rounds: int = 4) -> Constants:
    """Coordinate descent in the logarithm of each constant, from what is known of it."""
    best, lowest = KNOWN, loss(cases, KNOWN)
    step = 0.25
    for _ in range(rounds):
        for each in fields(best):
            for factor in (math.exp(step), math.exp(-step)):
                value = getattr(best, each.name) * factor
                if value > _MOST.get(each.name, math.inf):
                    continue
                trial = replace(best, **{each.name: value})
                cost = loss(cases, trial)
                if cost < lowest:
                    best, lowest = trial, cost
        step /= 1.8
    return best


def left_out(cases: Sequence[Case], progress: Callable[[str], None]) -> Errors:
    """Errors of each source with constants fitted to the others."""
    found = Errors()
    for source in sorted({case.run.source for case in cases}):
        progress(source)
        mine = [case for case in cases if case.run.source == source]
        others = [case for case in cases if case.run.source != source]
        part = errors(mine, fitted(others))
        found.decode.update(part.decode)
        found.prefill.update(part.prefill)
    return found
