"""Knows no arithmetic: ``localrun plan``, where every byte will lie, before the download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrun.cli.machines import AUTO, MachineName
from localrun.cli.options import (
    ApproximatePrefill,
    Backend,
    Ctx,
    DiskSpeed,
    Engram,
    Json,
    KvType,
    Learn,
    Mirror,
    Numerics,
    Parallel,
    Quant,
    Ram,
    Revision,
    Threads,
    Vram,
)
from localrun.cli.output import note, size
from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.cli.lookup import Found
    from localrun.plan.plan import Workload

_WORKLOAD = re.compile(r"([0-9]{1,10}):([0-9]{1,10})", re.ASCII)

Planned = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="A model here or on the hub, a file, a directory, or a config.json."
    ),
]
WorkloadText = Annotated[
    str | None,
    typer.Option("--workload", metavar="P:N", help="Tokens of prompt and answer; else 2048:512."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE.svg|.html", help="Also draw the picture in a file."),
]


def plan(
    ref: Planned,
    machine: MachineName = AUTO,
    ctx: Ctx = None,
    parallel: Parallel = 1,
    quant: Quant = None,
    revision: Revision = None,
    vram: Vram = None,
    ram: Ram = None,
    disk_speed: DiskSpeed = None,
    engram: Engram = None,
    mirror: Mirror = None,
    kv_type: KvType = None,
    threads: Threads = None,
    backend: Backend = None,
    numerics: Numerics = None,
    approximate_prefill: ApproximatePrefill = False,
    workload: WorkloadText = None,
    output: Output = None,
    learn: Learn = True,
    json: Json = False,
) -> None:
    """Say where every byte of a model will lie and how fast it will be, before the download."""
    from localrun.cli.loading import plan_found
    from localrun.cli.lookup import look_up
    from localrun.cli.machines import machine_for
    from localrun.cli.options import mirrors_of
    from localrun.cli.plan_view import check_output, export, show
    from localrun.config import settings
    from localrun.plan.plan import PlanRequest, Workload

    if output is not None:
        check_output(output)
    here = settings()
    request = PlanRequest(
        n_ctx=ctx,
        kv_type=kv_type,
        threads=threads,
        backend=backend,
        numerics=numerics,
        approximate_prefill=approximate_prefill,
        vram_bytes=vram,
        ram_bytes=ram,
        disk_read=disk_speed,
        engram=engram,
        mirrors=mirrors_of(mirror),
        parallel=parallel,
        workload=parse_workload(workload) if workload else Workload(),
    )
    there = machine_for(machine, here)
    found = look_up(ref, here, quant=quant, revision=revision)
    made = plan_found(found, there, request, explore=True, learn=learn)
    if output is not None:
        export(made, output)
    if json:
        typer.echo(made.to_json())
    else:
        show(made)
    tell_reading(found)


def parse_workload(text: str) -> Workload:
    """``P:N``, tokens of prompt and of answer.

    Raises:
        UsageError: anything else.
    """
    from localrun.plan.plan import Workload

    match = _WORKLOAD.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--workload {text!r} is not P:N", hint="tokens of prompt and answer, such as 4096:256"
        )
    return Workload(prompt=int(match[1]), output=int(match[2]))


def tell_reading(found: Found) -> None:
    """How much of a remote model was read to describe it."""
    if found.requests or found.cached:
        note(
            f"read {size(found.bytes_read)} of headers in {found.requests} requests"
            + (f", {found.cached} from the cache" if found.cached else "")
            + "; nothing else was downloaded"
        )
