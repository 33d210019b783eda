"""Knows no speed: a plan that cannot be, told with what is missing and what would fit instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localrun.errors import DoesNotFitError
from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan.constants import GIB, Constants
from localrun.plan.plan import PlanRequest, Workload
from localrun.plan.search import SMALLEST_N_CTX, UBATCHES, Solution, Source, contexts, search
from localrun.plan.whatif import shrunk


def refusal(
    nearest: Solution,
    spec: ModelSpec,
    machine: Machine,
    request: PlanRequest,
    source: Source,
    fit: Constants,
) -> DoesNotFitError:
    """The error for the assignment that lacked least."""
    made = nearest.assignment
    parts = []
    for load in made.loads:
        lacks = made.missing.get(load.room.name, 0)
        if lacks:
            flag = "vram" if load.room.name.startswith("vram") else "ram"
            whose = f"allowed by --{flag}" if load.room.asked else "usable"
            parts.append(
                f"{load.room.name} lacks {lacks / GIB:.2f} GiB ({load.total / GIB:.2f} needed: "
                f"{load.weights / GIB:.2f} weights, {load.kv / GIB:.2f} KV for "
                f"{made.choice.n_ctx} tokens, {(load.compute + load.overhead) / GIB:.2f} buffers; "
                f"{load.room.limit / GIB:.2f} {whose})"
            )
    lacks = made.missing.get("disk", 0)
    if lacks:
        has = made.disk.limit / GIB if made.disk else 0.0
        parts.append(f"disk lacks {lacks / GIB:.2f} GiB for what is read from it ({has:.2f} there)")
    would = next(_would_fit(spec, machine, request, source, fit), None)
    return DoesNotFitError(
        f"{source.ref} does not fit: {'; '.join(parts)}",
        hint=would or f"it takes {sum(made.missing.values()) / GIB:.1f} GiB more memory",
        shortfall=made.missing,
    )


def _would_fit(
    spec: ModelSpec, machine: Machine, request: PlanRequest, source: Source, fit: Constants
) -> Iterator[str]:
    """What would fit instead, the nearest to what was asked for first."""
    n_ctx, flow = request.n_ctx or 0, request.workload
    # A workload that was asked for must have room.
    least = flow.depth + flow.prompt + flow.output if flow != Workload() else 0
    while n_ctx // 2 >= max(SMALLEST_N_CTX, least):
        n_ctx //= 2
        asked = replace(request, n_ctx=n_ctx)
        if _fits(spec, machine, asked, source, fit):
            yield f"it would fit with --ctx {n_ctx}"
            break
    narrower = replace(request, kv_type="q8_0")
    wide = request.kv_type in (None, "f16", "bf16", "f32") and bool(spec.caches)
    if wide and _fits(spec, machine, narrower, source, fit):
        yield "it would fit with --kv-type q8_0"
    smaller, name = spec, ""
    while (step := shrunk(smaller)) is not None:
        name, smaller = step
        if _fits(smaller, machine, request, source, fit):
            yield f"it would fit as {name}, {smaller.tensor_bytes / 1e9:.1f} GB"
            break


def _fits(
    spec: ModelSpec, machine: Machine, request: PlanRequest, source: Source, fit: Constants
) -> bool:
    """Asked with what takes the least memory of what was left open."""
    least = replace(
        request, n_ctx=contexts(spec, request)[-1], ubatch=request.ubatch or min(UBATCHES)
    )
    return search(spec, machine, least, source, fit)[0] is not None
