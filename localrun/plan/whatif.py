"""Knows no screen: how fast the model would decode on a machine that is a little different."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localrun.hardware.machine import Machine, Tier
from localrun.models.spec import Experts, Group, ModelSpec, Table
from localrun.plan.constants import GIB
from localrun.plan.plan import PlanRequest, WhatIf
from localrun.plan.search import Solution, Source, search

_MORE_RAM = 64 * GIB
# Types in the order they shrink, with bits a weight (ggml-common.h).
_LADDER = (
    ("F32", 32.0),
    ("BF16", 16.0),
    ("Q8_0", 8.5),
    ("Q6_K", 6.5625),
    ("Q5_K", 5.5),
    ("Q4_K", 4.5),
    ("Q3_K", 3.4375),
    ("Q2_K", 2.625),
)


def what_if(
    found: Solution, spec: ModelSpec, machine: Machine, source: Source
) -> tuple[WhatIf, ...]:
    """Decode speed after each change that applies, alone."""
    # What was chosen stays: a full search for each change would cost more than the plan.
    choice, request = found.assignment.choice, found.task.request
    fixed = replace(request, ubatch=choice.ubatch, n_ctx=choice.n_ctx, kv_type=choice.kv_type)
    only = replace(source, candidates=(found.candidate,))
    residual = source.learned.decode
    slower = residual.ratio if residual else 1.0
    present = round(1e3 / (found.task.token_ms(found.assignment) * slower), 3)
    answers = []
    for change, other_spec, other_machine, other_request in _changes(found, spec, machine, fixed):
        better, _ = search(other_spec, other_machine, other_request, only, found.task.fit)
        if better is not None:
            tps = round(1e3 / (better.task.token_ms(better.assignment) * slower), 3)
            # A change may serve the prompt at the cost of the answer: that is no advice on it.
            if tps >= present:
                answers.append(WhatIf(change, tps))
    return tuple(answers)


def _changes(
    found: Solution, spec: ModelSpec, machine: Machine, request: PlanRequest
) -> Iterator[tuple[str, ModelSpec, Machine, PlanRequest]]:
    pool = machine.tier("ram") or machine.tier("unified")
    if pool is not None and request.ram_bytes is None:
        more = _more(pool, _MORE_RAM)
        yield f"{_MORE_RAM // GIB} GiB more memory", spec, _with(machine, pool, more), request
    disk = machine.tier("disk")
    if disk is not None and found.assignment.streams:
        twice = replace(disk, read=replace(disk.read, value=2 * disk.read.value))
        asked = request.disk_read and 2 * request.disk_read
        there = _with(machine, disk, twice)
        yield "a disk twice as fast", spec, there, replace(request, disk_read=asked)
    card = next((tier for tier in machine.tiers if tier.kind == "vram"), None)
    if card is not None and found.candidate.device and not found.engine.one_card:
        count = sum(tier.kind == "vram" for tier in machine.tiers)
        second = replace(card, name=f"vram:{count}")
        there = replace(machine, tiers=(*machine.tiers, second))
        yield f"another {card.device or 'GPU'}", spec, there, request
    smaller = shrunk(spec)
    if smaller is not None:
        yield f"weights as {smaller[0]}", smaller[1], machine, request
    half = request.n_ctx or 0
    flow = request.workload
    if half // 2 >= max(512, flow.depth + flow.prompt + flow.output):
        yield f"a context of {half // 2}", spec, machine, replace(request, n_ctx=half // 2)


def _more(tier: Tier, size: int) -> Tier:
    return replace(
        tier,
        capacity_bytes=tier.capacity_bytes + size,
        usable_bytes=tier.usable_bytes + size,
    )


def _with(machine: Machine, old: Tier, new: Tier) -> Machine:
    return replace(machine, tiers=tuple(new if tier is old else tier for tier in machine.tiers))


def shrunk(spec: ModelSpec) -> tuple[str, ModelSpec] | None:
    """The model with its matrices one step narrower, and that step's name; None at the last one."""
    matrices = [group for group in spec.groups if group.kind not in ("engram", "vision")]
    parameters = sum(group.parameters for group in matrices)
    if not parameters:
        return None
    bits = 8 * sum(group.bytes for group in matrices) / parameters
    step = next(((name, width) for name, width in _LADDER if width < 0.92 * bits), None)
    if step is None:
        return None
    factor = step[1] / bits
    groups = tuple(
        group if group.kind in ("engram", "vision") else _scaled(group, factor)
        for group in spec.groups
    )
    total = sum(group.bytes for group in groups)
    return step[0], replace(spec, groups=groups, tensor_bytes=total)


def _scaled(group: Group, factor: float) -> Group:
    experts, table = group.experts, group.table
    if experts is not None:
        experts = Experts(experts.count, experts.used, int(experts.bytes * factor))
    if table is not None:
        table = Table(table.rows, table.row_bytes, table.rows_per_token, table.pieces)
    return replace(
        group,
        bytes=int(group.bytes * factor),
        active_bytes=int(group.active_bytes * factor),
        types={"Q4_K": int(group.bytes * factor)} if factor < 1 else group.types,
        experts=experts,
    )
