"""Knows no library: ``localrun bench``, prefill and decode through the engine.

The labels are llama-bench's: pp512 is a prompt of 512 tokens, tg128 decodes 128. Each repetition
starts from a prompt that shares no prefix with the last one, so that nothing is cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localrun.cli.options import Backend, Ctx, Json, KvType, Ref, Threads
from localrun.cli.output import emit_json, note, say, size
from localrun.errors import EngineError, UsageError

if TYPE_CHECKING:
    from localrun.cli.loading import Prepared
    from localrun.engine.client import EngineClient
    from localrun.engine.request import Timings

WARM_TOKENS = 8
PromptTokens = Annotated[int, typer.Option("-p", "--prompt-tokens", help="Tokens of the prompt.")]
DecodeTokens = Annotated[int, typer.Option("-n", "--decode-tokens", help="Tokens to decode.")]
Repetitions = Annotated[int, typer.Option("-r", "--repetitions", help="Runs of each test.")]


def bench(
    ref: Ref,
    prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 128,
    repetitions: Repetitions = 5,
    ctx: Ctx = None,
    kv_type: KvType = "f16",
    threads: Threads = None,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Measure prefill and decode speed through the engine."""
    import asyncio

    from localrun.cli.loading import prepare
    from localrun.plan.plan import PlanRequest

    if min(prompt_tokens, decode_tokens, repetitions) < 1:
        raise UsageError("-p, -n and -r are at least 1")
    needed = max(prompt_tokens + WARM_TOKENS, decode_tokens + 1) + 1
    request = PlanRequest(n_ctx=ctx or needed, kv_type=kv_type, threads=threads, backend=backend)
    prepared = prepare(ref, request)
    if prepared.plan.execution.n_ctx < needed:
        raise UsageError(f"--ctx {ctx} is shorter than the {needed} tokens of the tests")
    document = asyncio.run(_measure(prepared, prompt_tokens, decode_tokens, repetitions))
    if json:
        emit_json(document)
    else:
        _print(document)


async def _measure(
    prepared: Prepared, prompt_tokens: int, decode_tokens: int, repetitions: int
) -> dict[str, object]:
    import statistics

    from localrun.cli.loading import open_process

    client = await open_process(prepared)
    try:
        await _generate(client, prompt_tokens, WARM_TOKENS, 0)  # warms caches and pages
        prefill, decode = [], []
        for turn in range(1, repetitions + 1):
            prefill.append((await _generate(client, prompt_tokens, 1, turn)).prefill_tps)
            decode.append((await _generate(client, 1, decode_tokens + 1, turn)).decode_tps)
        memory = (await client.stats()).memory_bytes
    finally:
        await client.close()
    planned = {budget.tier: budget.total for budget in prepared.plan.budgets}
    return {
        "ref": prepared.plan.ref,
        "backend": prepared.plan.backend,
        "threads": prepared.plan.execution.threads,
        "kv_type": prepared.plan.execution.kv_type,
        "tests": [
            {"test": f"pp{prompt_tokens}", "tps": statistics.median(prefill), "samples": prefill},
            {"test": f"tg{decode_tokens}", "tps": statistics.median(decode), "samples": decode},
        ],
        "memory": [
            {"tier": tier, "planned": planned.get(tier), "measured": measured}
            for tier, measured in memory.items()
        ],
    }


async def _generate(client: EngineClient, prompt: int, count: int, turn: int) -> Timings:
    from localrun.engine.request import GenerationRequest, SamplingParams

    # Ids far below any control token; another first id each time, so that no prefix is shared.
    tokens = tuple(1000 + (turn * 7919 + at * 31) % 4000 for at in range(prompt))
    request = GenerationRequest(
        id=f"bench-{turn}-{prompt}",
        prompt=tokens,
        sampling=SamplingParams(temperature=0),
        max_tokens=count,
        ignore_end=True,
    )
    timings = None
    async for event in client.generate(request):
        if event.error is not None:
            raise EngineError(event.error)
        timings = event.timings or timings
    if timings is None or timings.generated_tokens != count:
        raise EngineError(f"the engine did not generate the {count} tokens it was asked for")
    return timings


def _print(document: dict[str, object]) -> None:
    note(f"{document['ref']} on {document['backend']}, {document['threads']} threads")
    tests = document["tests"]
    assert isinstance(tests, list)
    for test in tests:
        low, high = min(test["samples"]), max(test["samples"])
        say(f"{test['test']:>8}  {test['tps']:9.2f} tok/s  ({low:.2f} to {high:.2f})")
    memory = document["memory"]
    assert isinstance(memory, list)
    for tier in memory:
        say(f"{tier['tier']:>8}  {size(tier['measured'])} held")
