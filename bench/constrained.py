"""Output that must follow a grammar: whether it does, and what it costs beside free output.

    python bench/constrained.py [REF] [--schemas N] [--rounds N] [--threads N] [--json]

How the figures are taken is in METHODOLOGY.md. Exit code 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from agent_schemas import AGENT_SCHEMAS, Schema
from ending import ended
from random_schemas import bounded, problem, random_schema

from localrun.backends.llamacpp.backend import load
from localrun.cli.loading import prepare
from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    Timings,
)
from localrun.plan.plan import PlanRequest

RATIO_BOUND = 0.9
N_CTX = 4096
# Far more than a bounded schema's longest text has.
ROOM = 2048
AT_ONCE = 4
PROMPT = 400
_ids = count()

# Texts of any length: what is timed must not end before it is timed.
_RECORD: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 30},
        "kind": {"enum": ["bird", "fish", "mammal", "insect"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "weight": {"type": "number", "minimum": 0, "maximum": 900, "multipleOf": 0.01},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "known_since": {"type": "string", "format": "date"},
    },
    "required": ["name", "kind", "legs", "weight", "tags", "known_since"],
    "additionalProperties": False,
}
WORK: dict[str, Grammar] = {
    "records": Grammar(
        "json_schema", json.dumps({"type": "array", "items": _RECORD, "minItems": 200})
    ),
    "one long string": Grammar(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {"story": {"type": "string", "minLength": 8000, "maxLength": 65536}},
                "required": ["story"],
            }
        ),
    ),
    "any list": Grammar("json_schema", json.dumps({"type": "array", "minItems": 2000})),
    "regex": Grammar("regex", r"([A-Z][a-z]{1,12}( [a-z]{1,12}){2,9}[.!?] ){200}"),
}


@dataclass(frozen=True)
class Answer:
    text: str
    finish: FinishReason
    timings: Timings


def answer(generation: Generation) -> Answer:
    text = ""
    for event in generation:
        text += event.text
        if event.error:
            raise SystemExit(event.error)
        if event.finish is not None and event.timings is not None:
            return Answer(text, event.finish, event.timings)
    raise SystemExit("a generation ended without its last event")


def schemas(wanted: int) -> dict[str, Schema]:
    """Those of agents' tools first, with an end to what they leave open; then random ones."""
    known = {name: bounded(schema) for name, schema in AGENT_SCHEMAS.items()}
    made = {f"seed {seed}": random_schema(seed) for seed in range(max(0, wanted - len(known)))}
    return dict(islice((known | made).items(), wanted))


def check(engine: Engine, wanted: dict[str, Schema]) -> dict[str, Any]:
    """Generate one text for each schema, ``AT_ONCE`` at a time: the problems, and the tokens."""
    problems: dict[str, str] = {}
    tokens = 0
    for group in batched(wanted.items(), AT_ONCE):
        running = [
            engine.submit(
                GenerationRequest(
                    id=str(next(_ids)),
                    prompt=tuple(engine.tokenize(f"{json.dumps(schema)[:PROMPT]}\nAn example: ")),
                    sampling=SamplingParams(seed=seed),
                    max_tokens=ROOM,
                    grammar=Grammar("json_schema", json.dumps(schema)),
                )
            )
            for seed, (_, schema) in enumerate(group)
        ]
        for (name, schema), generation in zip(group, running, strict=True):
            got = answer(generation)
            tokens += got.timings.generated_tokens
            found = problem(got.text, schema)
            if got.finish is not FinishReason.STOP:
                found = f"cut after {got.timings.generated_tokens} tokens: {got.text[-80:]!r}"
            if found is not None:
                problems[name] = found
    return {"schemas": len(wanted), "tokens": tokens, "problems": problems}


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def decode_tps(engine: Engine, wanted: int, seed: int, grammar: Grammar | None) -> float:
    prompt = tuple(engine.tokenize(f"A list of animals, number {seed}:\n"))
    request = GenerationRequest(
        id=str(next(_ids)),
        prompt=prompt,
        sampling=SamplingParams(seed=seed),
        max_tokens=wanted,
        ignore_end=grammar is None,
        grammar=grammar,
        draft=False,
    )
    timings = answer(engine.submit(request)).timings
    if timings.generated_tokens != wanted:
        raise SystemExit(f"{timings.generated_tokens} tokens were generated, not {wanted}")
    return timings.decode_tps


def speed(engine: Engine, rounds: int, wanted: int) -> dict[str, dict[str, Any]]:
    """Free and constrained runs in turn, the order turned round each time; the first round warms
    pages, caches and the lexers of the grammars."""
    runs: dict[str, Grammar | None] = {"free": None, **WORK}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in sorted(runs, reverse=turn % 2 == 0):
            tps = decode_tps(engine, wanted, turn, runs[name])
            if turn:
                samples[name].append(tps)
    free = samples["free"]
    return {
        name: {
            "tps": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, free, strict=True)),
            "samples": values,
        }
        for name, values in samples.items()
    }


def missed(report: dict[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    found = [f"{name}: {why}" for name, why in report["validity"]["problems"].items()]
    found += [
        f"{name}: {values['ratio']:.3f} of free decode, not {RATIO_BOUND}"
        for name, values in report["speed"].items()
        if values["ratio"] < RATIO_BOUND
    ]
    return found


def show(report: dict[str, Any]) -> None:
    validity = report["validity"]
    good = validity["schemas"] - len(validity["problems"])
    print(f"{report['cores']} cores, load {report['load']}")
    print(f"valid: {good} of {validity['schemas']} schemas, {validity['tokens']} tokens")
    for name, values in report["speed"].items():
        low, high = min(values["samples"]), max(values["samples"])
        print(
            f"{name:>16} {values['tps']:8.2f} tok/s ({low:.2f} to {high:.2f})  "
            f"{values['ratio']:.3f} of free"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    plan = prepare(chosen.ref, PlanRequest(n_ctx=N_CTX, threads=chosen.threads)).plan
    engine = Engine(load(plan))
    try:
        report = {
            "ref": plan.ref,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "validity": check(engine, schemas(chosen.schemas)),
            "speed": speed(engine, chosen.rounds, chosen.decode),
        }
    finally:
        engine.close()
    return ended(report, missed(report), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
