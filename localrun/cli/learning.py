"""Knows no file's form: when a command asks what earlier runs showed, and what it adds to that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from localrun.cli.machines import key_here
from localrun.config import Settings, settings

if TYPE_CHECKING:
    from localrun.cli.loading import Prepared
    from localrun.engine.runner import RunnerStats
    from localrun.hardware.machine import Machine
    from localrun.models.spec import ModelSpec
    from localrun.plan.plan import Plan, PlanRequest
    from localrun.plan.search import Source


def folder_of(here: Settings) -> Path:
    """Where it is kept."""
    return here.data / "learned"


def plan_with_learned(
    spec: ModelSpec,
    machine: Machine,
    request: PlanRequest,
    source: Source,
    *,
    explore: bool = False,
    speeds: bool = True,
) -> Plan:
    """``plan`` with what runs on this machine showed; what of it cannot be read is a warning.
    Without ``speeds`` only how experts are picked counts, not how far predictions were off.

    Raises:
        PlanRequestError, DoesNotFitError: as ``plan``.
    """
    from localrun.learned import histograms, residuals
    from localrun.learned.identity import identity_of, kind_of
    from localrun.plan.assemble import planned_model
    from localrun.plan.learned import Learned
    from localrun.plan.planner import plan

    folder, model = folder_of(settings()), identity_of(planned_model(spec, source))
    runs, picked = residuals.load(folder, model, key_here(machine)), histograms.load(folder, model)
    source = replace(source, learned=Learned(picks=picked.shares(spec.experts_used)))
    if speeds and runs.by_kind:
        # What is known of a kind of plan can be asked for only when there is one; it moves no byte.
        known = runs.of(kind_of(plan(spec, machine, request, source), machine))
        learned = replace(
            source.learned,
            decode=residuals.residual(known.decode),
            prefill=residuals.residual(known.prefill),
        )
        source = replace(source, learned=learned)
    found = plan(spec, machine, request, source, explore=explore)
    notes = tuple(note for note in (runs.note, picked.note) if note)
    return replace(found, warnings=(*found.warnings, *notes)) if notes else found


def remember_speed(
    prepared: Prepared, *, decode_tps: Sequence[float], prefill_tps: Sequence[float]
) -> str:
    """Keep how far a plan was from what was measured of it; says what stood in the way.

    A plan that was saved before may be of another machine: nothing is to be learned from it.
    """
    from localrun.cli.loading import candidates, source_of
    from localrun.learned import residuals
    from localrun.learned.identity import identity_of, kind_of

    found, request, machine = prepared.found, prepared.request, prepared.machine
    if request is None or not prepared.learns:
        return ""
    chosen = candidates(found, machine, request.backend, runnable=True)
    # Held against what is predicted without earlier runs, else they would count twice.
    source = source_of(found, chosen)
    bare = plan_with_learned(found.spec, machine, request, source, speeds=False).prediction
    if not (bare.decode_tps.mid and bare.prefill_tps.mid):
        return ""
    try:
        residuals.add(
            folder_of(settings()),
            identity_of(prepared.plan.model),
            key_here(machine),
            kind_of(prepared.plan, machine),
            decode=residuals.ratios(bare.decode_tps.mid, decode_tps),
            prefill=residuals.ratios(bare.prefill_tps.mid, prefill_tps),
        )
    except OSError as error:
        return f"this run is not remembered: {error}"
    return ""


def at_the_end(
    plan: Plan, tell: Callable[[str], None], *, remember: bool
) -> Callable[[RunnerStats], Awaitable[None]]:
    """What is done with the last counters of a runner: its notes are told, and with ``remember``
    its picks of experts are kept."""

    async def closing(stats: RunnerStats) -> None:
        for line in stats.notes:
            tell(line)
        if remember and any(map(any, stats.picks.values())):
            try:
                await asyncio.to_thread(_remember_picks, plan, stats)
            except OSError as error:
                tell(f"picks of experts are not remembered: {error}")

    return closing


def _remember_picks(plan: Plan, stats: RunnerStats) -> None:
    from localrun.learned import histograms
    from localrun.learned.identity import identity_of

    histograms.add(folder_of(settings()), identity_of(plan.model), stats.picks)
