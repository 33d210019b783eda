"""Decode with guesses from the text beside decode without, on a text that repeats itself and not.

    python bench/speculation.py [REF] [--draft REF] [--threads N] [--rounds N] [--json]

Both run in this process over the same library and plan, one after the other in turns; the texts
must be the same. How the figures are taken is in METHODOLOGY.md. Exit code 1 when a bound is
missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from itertools import count
from typing import Any

from ending import ended

from localrun.backends.llamacpp.backend import load
from localrun.cli.loading import prepare
from localrun.engine.drafting.draft_model import DraftModel
from localrun.engine.drafting.lookup import PromptLookup
from localrun.engine.drafting.speculation import Both, Drafting
from localrun.engine.engine import Engine
from localrun.engine.request import GenerationRequest, SamplingParams, Timings
from localrun.plan.plan import Plan, PlanRequest

# Of all tokens together: up to here llama.cpp computes one row and several rows by one kernel.
N_CTX = 256
DECODE = 128
BOUNDS = {"repeats": 1.5, "does not": 0.97}

_PASSAGE = (
    "The lighthouse keeper's name was Marta Olsen, and she had lived on the rock for nineteen "
    "years. Each evening she climbed the hundred and twelve steps with a can of oil in one hand "
    "and a broom in the other, because the gulls left feathers on every landing.\n\n"
)
# A small model that takes the likeliest token each time goes round in circles, which is a text
# that repeats itself: the one that does not is drawn, as users' texts are.
TEXTS = {
    "repeats": (_PASSAGE * 2 + "The lighthouse", SamplingParams(temperature=0)),
    "does not": (
        "The lighthouse keeper's name was Marta, and one evening in autumn she saw",
        SamplingParams(seed=1),
    ),
}
_ids = count()


@dataclass(frozen=True)
class Run:
    """What one request was answered, and how fast."""

    tokens: tuple[int, ...]
    timings: Timings


def decode(engine: Engine, prompt: tuple[int, ...], sampling: SamplingParams) -> Run:
    """``DECODE`` tokens. Each run has an owner of its own, so that no prefix is shared."""
    name = str(next(_ids))
    request = GenerationRequest(
        id=name,
        prompt=prompt,
        sampling=sampling,
        max_tokens=DECODE + 1,
        ignore_end=True,
        owner=name,
    )
    tokens: list[int] = []
    timings = None
    for event in engine.submit(request):
        tokens += event.tokens
        timings = event.timings or timings
        if event.error:
            raise SystemExit(event.error)
    if timings is None or timings.generated_tokens != DECODE + 1 or timings.cached_tokens:
        raise SystemExit(f"the engine did something else than asked: {timings}")
    return Run(tuple(tokens), timings)


def measure(plan: Plan, draft: Plan | None, rounds: int) -> dict[str, Any]:
    """Interleaves plain decode and decode with guesses, turning the order round each time."""
    drafting: Drafting = PromptLookup()
    if draft is not None:
        drafting = Both(drafting, DraftModel(load(draft)))
    engines = {"plain": Engine(load(plan)), "guessed": Engine(load(plan), drafting=drafting)}
    runs: dict[str, dict[str, list[Run]]] = {text: {name: [] for name in engines} for text in TEXTS}
    try:
        for turn in range(rounds + 1):
            for text, (words, sampling) in TEXTS.items():
                prompt = tuple(engines["plain"].tokenize(words, add_special=True))
                for name in sorted(engines, reverse=turn % 2 == 0):
                    runs[text][name].append(decode(engines[name], prompt, sampling))
    finally:
        for engine in engines.values():
            engine.close()
    return {
        "ref": plan.ref,
        "draft": None if draft is None else draft.ref,
        "threads": plan.execution.threads,
        "kv_type": plan.execution.kv_type,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        # The first round warms pages and caches.
        "texts": {
            text: summary({name: made[1:] for name, made in by_name.items()})
            for text, by_name in runs.items()
        },
    }


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, and the median over rounds of the ratio of the two runs of a round."""
    speeds = {name: [run.timings.decode_tps for run in made] for name, made in runs.items()}
    pairs = zip(speeds["guessed"], speeds["plain"], strict=True)
    guessed = [run.timings for run in runs["guessed"]]
    drafted = sum(timings.drafted_tokens for timings in guessed)
    accepted = sum(timings.accepted_tokens for timings in guessed)
    return {
        "tps": {name: statistics.median(values) for name, values in speeds.items()},
        "samples": speeds,
        "ratio": statistics.median(one / other for one, other in pairs),
        "drafted": drafted / len(guessed),
        "accepted": accepted / len(guessed),
        "same_tokens": len({run.tokens for made in runs.values() for run in made}) == 1,
    }


def missed(report: dict[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    found = []
    for text, figures in report["texts"].items():
        if figures["ratio"] < BOUNDS[text]:
            found.append(
                f"a text that {text}: {figures['ratio']:.3f} of plain decode, not {BOUNDS[text]}"
            )
        if not figures["same_tokens"]:
            found.append(f"a text that {text}: guesses changed it")
    return found


def show(report: dict[str, Any]) -> None:
    guessing = "guesses from the text"
    if report["draft"] is not None:
        guessing += f" and by {report['draft']}"
    machine = f"{report['threads']} threads, {report['kv_type']} cache, load {report['load']}"
    print(f"{report['ref']}, {guessing}, {machine}")
    for text, figures in report["texts"].items():
        for name, speed in figures["tps"].items():
            low, high = min(figures["samples"][name]), max(figures["samples"][name])
            print(f"{text:>9} {name:>8} {speed:9.2f} tok/s ({low:.2f} to {high:.2f})")
        share = figures["accepted"] / figures["drafted"] if figures["drafted"] else 0.0
        print(
            f"{text:>9}    ratio {figures['ratio']:9.3f}  of {figures['drafted']:.0f} guesses "
            f"{share:.0%} right in {DECODE} tokens, same tokens: {figures['same_tokens']}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--draft")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    request = PlanRequest(n_ctx=N_CTX, threads=chosen.threads)
    plan = prepare(chosen.ref, request).plan
    draft = None if chosen.draft is None else prepare(chosen.draft, request).plan
    report = measure(plan, draft, chosen.rounds)
    return ended(report, missed(report), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
