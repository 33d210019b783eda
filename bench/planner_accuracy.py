"""Measures the planner against published runs.

    python bench/planner_accuracy.py --runs FILE.csv [--json] [--fit] [--plot FILE.svg]

Plans every row of a table of published runs, its placement given as a constraint, and prints by
class of placement how far the predictions are: the median and 90th percentile of the absolute
error, the bias, and the median error where each source is predicted with constants fitted to the
others alone. Rows marked as traps are not counted; the warnings that they draw are printed. `--fit`
fits the twelve constants of localrun/plan/constants.py to all rows and prints them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from published_runs import Run, Skipped, read, rows

from localrun.errors import PlanError
from localrun.plan.constants import FITTED, Constants
from localrun.plan.engines import ENGINES
from localrun.plan.estimate import estimate
from localrun.plan.placement import Assignment
from localrun.plan.planner import check
from localrun.plan.search import Candidate, Solution, Source, search
from localrun.plan.warn import warnings

CLASSES = ("all-gpu", "unified", "hybrid", "cpu", "streaming", "engram")
# A published figure is right to a few per cent, so errors beyond a factor are all alike.
_ROBUST = 0.25
# How far, as a logarithm, a constant may be from what is known of it at the cost of one row.
_TRUST = 0.2
# What is known of each apart from the rows (planner.md section 2.2 of the reference).
_KNOWN = Constants(
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


@dataclass(frozen=True, slots=True)
class Case:
    """A row that could be planned, with what was measured."""

    id: str
    run: Run
    solution: Solution
    decode: float | None
    prefill: float | None


@dataclass(frozen=True, slots=True)
class Errors:
    """Signed errors as fractions of what was measured."""

    decode: dict[str, float]
    prefill: dict[str, float]


def solve(run: Run) -> Solution:
    """The plan's placement. Raises Skipped where none exists within the row's constraints."""
    source = Source("row", (), (Candidate(run.engine.name, "the row's", run.device),))
    before = ENGINES[run.engine.name]
    ENGINES[run.engine.name] = run.engine
    try:
        check(run.request, run.machine, run.spec)
        best, nearest = search(run.spec, run.machine, run.request, source)
    except PlanError as error:
        raise Skipped(error.message) from error
    finally:
        ENGINES[run.engine.name] = before
    if best is None:
        raise Skipped(f"does not fit: {_lacking(nearest)}")
    return best


def _lacking(nearest: Solution | None) -> str:
    made: Assignment | None = nearest.assignment if nearest else None
    missing = made.missing if made else {}
    return ", ".join(f"{tier} lacks {size / 1e9:.1f} GB" for tier, size in missing.items())


def predicted(case: Case, fit: Constants) -> tuple[float, float]:
    """Decode and prefill in tokens a second."""
    task = replace(case.solution.task, fit=fit)
    prediction = estimate(replace(case.solution, task=task))
    return prediction.decode_tps.mid, prediction.prefill_tps.mid


def errors(cases: Sequence[Case], fit: Constants) -> Errors:
    """Of every case that has the figure."""
    found = Errors({}, {})
    for case in cases:
        decode, prefill = predicted(case, fit)
        if case.decode:
            found.decode[case.id] = decode / case.decode - 1
        if case.prefill:
            found.prefill[case.id] = prefill / case.prefill - 1
    return found


def loss(cases: Sequence[Case], fit: Constants) -> float:
    """Robust sum of squared log errors, and each constant's distance from what is known of it.

    A source alone must not move a constant far: each counts as one more row, whose error is the
    distance from the figure of the parts' makers or of others' measurements (``_KNOWN``).
    """
    total = 0.0
    for case in cases:
        decode, prefill = predicted(case, fit)
        for real, guess in ((case.decode, decode), (case.prefill, prefill)):
            if real:
                total += math.log1p((math.log(guess / real) / _ROBUST) ** 2)
    for name, value in asdict(_KNOWN).items():
        total += (math.log(getattr(fit, name) / value) / _TRUST) ** 2
    return total


def fitted(cases: Sequence[Case], start: Constants, rounds: int = 4) -> Constants:
    """Coordinate descent in the logarithm of each constant, from ``start``."""
    best, lowest = start, loss(cases, start)
    step = 0.25
    for _ in range(rounds):
        for field in fields(best):
            for factor in (math.exp(step), math.exp(-step)):
                value = getattr(best, field.name) * factor
                if value > _MOST.get(field.name, math.inf):
                    continue
                trial = replace(best, **{field.name: value})
                cost = loss(cases, trial)
                if cost < lowest:
                    best, lowest = trial, cost
        step /= 1.8
    return best


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


def left_out(cases: Sequence[Case], progress: Callable[[str], None]) -> Errors:
    """Errors of each source with constants fitted to the others."""
    found = Errors({}, {})
    for source in sorted({case.run.source for case in cases}):
        progress(source)
        mine = [case for case in cases if case.run.source == source]
        others = [case for case in cases if case.run.source != source]
        part = errors(mine, fitted(others, _KNOWN))
        found.decode.update(part.decode)
        found.prefill.update(part.prefill)
    return found


def summary(cases: Sequence[Case], found: Errors, apart: Errors | None) -> dict[str, object]:
    """By class, the document of --json."""
    classes: dict[str, object] = {}
    for kind in CLASSES:
        ids = {case.id for case in cases if case.run.kind == kind}
        classes[kind] = {
            name: _statistics(
                [error for id, error in getattr(found, name).items() if id in ids],
                [error for id, error in getattr(apart, name).items() if id in ids] if apart else [],
            )
            for name in ("decode", "prefill")
        }
    return classes


def _statistics(found: Sequence[float], apart: Sequence[float]) -> dict[str, float | int | None]:
    size = sorted(abs(error) for error in found)
    return {
        "count": len(found),
        "median_abs_error": _round(statistics.median(size)) if size else None,
        "p90_abs_error": _round(size[math.ceil(0.9 * len(size)) - 1]) if size else None,
        "bias": _round(statistics.fmean(found)) if found else None,
        "left_out_median_abs_error": (
            _round(statistics.median(abs(error) for error in apart)) if apart else None
        ),
    }


def _round(value: float) -> float:
    return round(value, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="the table of published runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fit", action="store_true", help="fit the constants and print them")
    parser.add_argument("--quick", action="store_true", help="no leave-one-source-out")
    parser.add_argument("--plot", type=Path, help="predicted against measured, as SVG")
    given = parser.parse_args()
    cases, skipped, traps = [], [], []
    for row in rows(given.runs):
        try:
            case = _case(row)
        except Skipped as reason:
            if row["trap"] == "yes":
                traps.append({"id": row["id"], "warnings": [f"refused: {reason}"]})
            else:
                skipped.append({"id": row["id"], "reason": str(reason)})
            continue
        if row["trap"] == "yes":
            traps.append({"id": row["id"], "warnings": _warnings(case)})
        else:
            cases.append(case)
    if given.fit:
        print(json.dumps(asdict(fitted(cases, _KNOWN, rounds=8)), indent=1))
        return
    found = errors(cases, FITTED)
    apart = None if given.quick else left_out(cases, lambda name: print(name, file=sys.stderr))
    document = {
        "classes": summary(cases, found, apart),
        "skipped": skipped,
        "traps": traps,
        "rows": _rows(cases),
    }
    if given.plot:
        from accuracy_plot import plot

        given.plot.write_text(plot(_rows(cases)), encoding="utf-8")
    if given.json:
        print(json.dumps(document, indent=1))
    else:
        _print(document)


def _case(row: dict[str, str]) -> Case:
    decode = float(row["decode_tps"]) if row["decode_tps"] else None
    prefill = float(row["prefill_tps"]) if row["prefill_tps"] else None
    if row["speculative"] not in ("none", ""):
        raise Skipped(f"speculative decoding ({row['speculative']})")
    if decode is None and prefill is None:
        raise Skipped("nothing was measured")
    run = read(row)
    if not row["n_depth"]:
        prefill = None  # a prompt of unknown length
    solution = solve(run)
    host = solution.assignment.host
    if host is not None and (host.dense.bytes or host.routed or host.cache) and not run.ram_stated:
        decode = None  # a host of unknown speed sets its pace; prompts are computed on the card
    if decode is None and prefill is None:
        raise Skipped("neither RAM speed nor CPU is stated")
    return Case(row["id"], run, solution, decode, prefill)


def _warnings(case: Case) -> list[str]:
    run, found = case.run, case.solution
    return list(warnings(found, run.spec, run.machine, estimate(found)))


def _rows(cases: Sequence[Case]) -> list[dict[str, object]]:
    found = []
    for case in cases:
        decode, prefill = predicted(case, FITTED)
        found.append(
            {
                "id": case.id,
                "class": case.run.kind,
                "decode": case.decode,
                "predicted_decode": round(decode, 3) if case.decode else None,
                "prefill": case.prefill,
                "predicted_prefill": round(prefill, 3) if case.prefill else None,
            }
        )
    return found


def _print(document: dict[str, object]) -> None:
    print(f"{'class':<10} {'':<8} {'rows':>4} {'median':>8} {'p90':>8} {'bias':>8} {'left out':>9}")
    classes = document["classes"]
    assert isinstance(classes, dict)
    for kind, parts in classes.items():
        for name, values in parts.items():
            if values["count"]:
                print(
                    f"{kind:<10} {name:<8} {values['count']:>4} {values['median_abs_error']:>8.1%}"
                    f" {values['p90_abs_error']:>8.1%} {values['bias']:>+8.1%}"
                    + (
                        f" {values['left_out_median_abs_error']:>9.1%}"
                        if values["left_out_median_abs_error"] is not None
                        else ""
                    )
                )
    for item in _list(document["rows"]):
        line = f"{item['id']:<5} {item['class']:<10}"
        for name in ("decode", "prefill"):
            real, guess = item[name], item[f"predicted_{name}"]
            if real:
                line += f" {name} {real:>9.2f} predicted {guess:>9.2f} ({guess / real - 1:+.0%})"
        print(line)
    for item in _list(document["skipped"]):
        print(f"skipped {item['id']}: {item['reason']}")
    for item in _list(document["traps"]):
        print(f"trap {item['id']}: {'; '.join(item['warnings']) or 'NO WARNING'}")


def _list(value: object) -> list[dict[str, object] | dict[str, float]]:
    assert isinstance(value, list)
    return value


if __name__ == "__main__":
    main()
