"""Knows no flag: the tests of ``localrun bench``, measured beside what a plan predicts of them.

The labels are llama-bench's: pp512 is a prompt of 512 tokens, tg128 decodes 128. Each repetition
starts from a prompt that shares no prefix with the last one, so that nothing is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from localrun.cli.comparison import (
    Compared,
    Hits,
    Spent,
    compared,
    expert_lines,
    held,
    hits,
    lines,
    middle,
    spent,
)
from localrun.cli.learning import remember_speed
from localrun.cli.loading import open_process
from localrun.cli.output import note, say, size
from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.errors import EngineError
from localrun.plan.terms import STEP

if TYPE_CHECKING:
    from localrun.cli.loading import Prepared
    from localrun.engine.client import EngineClient
    from localrun.engine.request import Timings
    from localrun.plan.plan import Plan

WARM_TOKENS: Final = 8


async def measured(
    prepared: Prepared, prompt_tokens: int, decode_tokens: int, repetitions: int
) -> dict[str, Any]:
    """Run the tests and make the document of what was found."""
    # How experts are picked for made-up prompts says nothing of a person's.
    client, plan = await open_process(replace(prepared, learns=False))
    prefill = _Samples(f"pp{prompt_tokens}", lambda timings: timings.prefill_tps)
    decode = _Samples(f"tg{decode_tokens}", lambda timings: timings.decode_tps)
    try:
        noted = (await client.stats()).notes
        await _generate(client, prompt_tokens, WARM_TOKENS, 0)  # warms caches and pages
        for turn in range(1, repetitions + 1):
            await prefill.take(client, prompt_tokens, 1, turn)
            await decode.take(client, 1, decode_tokens + 1, turn)
        stats = await client.stats()
    finally:
        await client.close()
    # A runner that gave memory back meanwhile has not run what was planned.
    if plan == prepared.plan and stats.notes == noted:
        problem = remember_speed(prepared, decode_tps=decode.samples, prefill_tps=prefill.samples)
        if problem:
            note(problem)
    return {
        "ref": plan.ref,
        "backend": plan.backend,
        "threads": plan.execution.threads,
        "kv_type": plan.execution.kv_type,
        "numerics": plan.execution.numerics,
        "tests": [
            _prefilled(plan, prefill, min(plan.execution.ubatch, prompt_tokens)),
            _decoded(plan, decode),
        ],
        "memory": held(plan, stats),
    }


class _Samples:
    """Repetitions of one test: their speeds, and what the runner spent on each token."""

    def __init__(self, test: str, speed: Callable[[Timings], float]) -> None:
        self.test = test
        self.spent: list[Spent] = []
        self._speed = speed
        self.samples: list[float] = []
        self._forward: list[float] = []

    async def take(self, client: EngineClient, prompt: int, count: int, turn: int) -> None:
        before = await client.stats()
        timings = await _generate(client, prompt, count, turn)
        after = await client.stats()
        # The first token comes of the prompt: one is computed for each of the others.
        self.spent.append(spent(before, after, prompt + count - 1))
        seconds = timings.prefill_s + timings.decode_s
        self._forward.append((after.forward_s - before.forward_s) / seconds)
        self.samples.append(self._speed(timings))

    @property
    def tps(self) -> float:
        return median(self.samples)

    def document(self, tokens: int) -> dict[str, Any]:
        """``measured_ms`` of ``tokens``: in forward, which all terms but ``step`` predict, and in
        the loop around it."""
        whole = 1e3 * tokens / self.tps
        share = min(1.0, median(self._forward))
        return {
            "test": self.test,
            "tps": self.tps,
            "samples": self.samples,
            "measured_ms": {"forward": whole * share, "step": whole * (1 - share)},
        }


def _prefilled(plan: Plan, samples: _Samples, chunk: int) -> dict[str, Any]:
    told = plan.prediction
    return samples.document(chunk) | {
        "predicted_tps": asdict(told.prefill_tps),
        "terms_ms": dict(told.prefill_terms_ms),
    }


def _decoded(plan: Plan, samples: _Samples) -> dict[str, Any]:
    told, found = plan.prediction, middle(samples.spent)
    document = samples.document(1)
    return document | {
        "predicted_tps": asdict(told.decode_tps),
        "terms_ms": dict(told.terms_ms),
        "terms": [asdict(each) for each in compared(told, found, document["measured_ms"]["step"])],
        "experts": [asdict(each) for each in hits(found)],
        "read_ahead": {"experts": found.read_ahead, "needed": found.needed},
    }


async def _generate(client: EngineClient, prompt: int, count: int, turn: int) -> Timings:
    # Ids far below any control token; another first id each time, so that no prefix is shared.
    size = client.info.vocabulary_size
    first = min(1000, size // 2)
    tokens = tuple(
        first + (turn * 7919 + at * 31) % min(4000, size - first) for at in range(prompt)
    )
    request = GenerationRequest(
        id=f"bench-{turn}-{prompt}",
        prompt=tokens,
        sampling=SamplingParams(temperature=0),
        max_tokens=count,
        ignore_end=True,
        draft=False,
    )
    timings = None
    async for event in client.generate(request):
        if event.error is not None:
            raise event.error
        timings = event.timings or timings
    if timings is None or timings.generated_tokens != count:
        raise EngineError(f"the engine did not generate the {count} tokens it was asked for")
    return timings


def print_measured(document: dict[str, Any]) -> None:
    """The document for a person."""
    note(f"{document['ref']} on {document['backend']}, {document['threads']} threads")
    for test in document["tests"]:
        low, high = min(test["samples"]), max(test["samples"])
        guess = test["predicted_tps"]
        say(
            f"{test['test']:>8}  {test['tps']:9.2f} tok/s  ({low:.2f} to {high:.2f}); predicted "
            f"{guess['mid']:.2f} ({guess['low']:.2f} to {guess['high']:.2f})"
        )
        for line in _lines(test):
            say(f"{'':>8}  {line}")
    for tier in document["memory"]:
        name = f"{tier['tier']} (simulated)" if tier["simulated"] else tier["tier"]
        say(f"{name:>8}  {_beside(tier['measured'], tier['planned'])}")
        for name, part in tier["parts"].items():
            if part["measured"] is not None:
                say(f"{name:>16}  {_beside(part['measured'], part['planned'])}")


def _lines(test: dict[str, Any]) -> Iterator[str]:
    terms = dict(test["terms_ms"])
    step, measured = terms.pop("step", 0.0), test["measured_ms"]
    told = [Compared(**each) for each in test.get("terms", ())]
    apart = any(each.measured_ms is not None for each in told if each.term != STEP)
    parts = "" if apart else f" ({', '.join(f'{name} {time:.2f}' for name, time in terms.items())})"
    yield f"forward {measured['forward']:.2f} ms, predicted {sum(terms.values()):.2f}{parts}"
    if apart:
        yield from lines([each for each in told if each.term != STEP])
    yield f"step {measured['step']:.2f} ms, predicted {step:.2f}"
    if "experts" in test:
        ahead = test["read_ahead"]
        tiers = [Hits(**each) for each in test["experts"]]
        yield from expert_lines(tiers, ahead["experts"], ahead["needed"])


def _beside(measured: int | None, planned: int | None) -> str:
    parts = [
        f"{size(count)} {word}"
        for count, word in ((measured, "held"), (planned, "planned"))
        if count is not None
    ]
    return ", ".join(parts)
