"""Knows no measuring: ``localrun bench``, prefill and decode through the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from localrun.cli.options import (
    Backend,
    Ctx,
    DiskSpeed,
    Engram,
    Json,
    KvType,
    Learn,
    Mirror,
    Numerics,
    PlanFile,
    Ram,
    Ref,
    Threads,
    Vram,
)
from localrun.cli.output import emit_json, note
from localrun.errors import UsageError

PromptTokens = Annotated[int, typer.Option("-p", "--prompt-tokens", help="Tokens of the prompt.")]
DecodeTokens = Annotated[int, typer.Option("-n", "--decode-tokens", help="Tokens to decode.")]
Repetitions = Annotated[int, typer.Option("-r", "--repetitions", help="Runs of each test.")]


def bench(
    ref: Ref,
    prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 128,
    repetitions: Repetitions = 5,
    ctx: Ctx = None,
    kv_type: KvType = None,
    threads: Threads = None,
    ram: Ram = None,
    vram: Vram = None,
    disk_speed: DiskSpeed = None,
    engram: Engram = None,
    mirror: Mirror = None,
    backend: Backend = None,
    numerics: Numerics = None,
    plan: PlanFile = None,
    learn: Learn = True,
    json: Json = False,
) -> None:
    """Measure prefill and decode speed through the engine, beside what the plan predicts."""
    import asyncio

    from localrun.cli.loading import prepare
    from localrun.cli.measuring import WARM_TOKENS, measured, print_measured
    from localrun.cli.options import mirrors_of, no_budget_beside_plan
    from localrun.cli.saved_plans import prepare_saved
    from localrun.plan.plan import PlanRequest, Workload

    if min(prompt_tokens, decode_tokens, repetitions) < 1:
        raise UsageError("-p, -n and -r are at least 1")
    needed = prompt_tokens + decode_tokens + WARM_TOKENS + 1
    request = PlanRequest(
        n_ctx=ctx,
        kv_type=kv_type,
        threads=threads,
        backend=backend,
        ram_bytes=ram,
        vram_bytes=vram,
        disk_read=disk_speed,
        engram=engram,
        mirrors=mirrors_of(mirror),
        numerics=numerics,
    )
    no_budget_beside_plan(plan, request)
    if plan is None:
        flow = Workload(prompt=prompt_tokens, output=decode_tokens)
        request = replace(request, n_ctx=ctx or needed, workload=flow)
        prepared = prepare(ref, request, learn=learn)
    else:
        prepared = prepare_saved(ref, plan)
    if (held := prepared.plan.execution.n_ctx) < needed:
        where = f"--ctx {ctx}" if plan is None else f"--plan {plan}: execution.n_ctx {held}"
        raise UsageError(f"{where} is shorter than the {needed} tokens of the tests")
    for warning in prepared.plan.warnings:
        note(f"note: {warning}")
    document = asyncio.run(measured(prepared, prompt_tokens, decode_tokens, repetitions))
    if json:
        emit_json(document)
    else:
        print_measured(document)
