"""Measures the planner against published runs.

    python bench/planner_accuracy.py --runs FILE.csv [--json] [--fit] [--quick] [--plot FILE.svg]

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accuracy_plot import Point, plot
from planner_fit import Case, Errors, errors, fitted, left_out
from published_runs import Run, Skipped, number, read, rows

from localrun.errors import PlanError, UsageError
from localrun.plan.constants import FITTED
from localrun.plan.engines import ENGINES, Engine
from localrun.plan.estimate import estimate
from localrun.plan.planner import check
from localrun.plan.search import Candidate, Solution, Source, search
from localrun.plan.warn import warnings

CLASSES = ("all-gpu", "unified", "hybrid", "cpu", "streaming", "engram")
SPEEDS = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class Table:
    """What became of the rows. ``skipped`` maps an id to the reason, ``traps`` to the warnings."""

    cases: list[Case] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    traps: list[tuple[str, list[str]]] = field(default_factory=list)


def sorted_out(lines: Sequence[Mapping[str, str]]) -> Table:
    """Plan every row."""
    found = Table()
    for row in lines:
        name, trap = row["id"], row["trap"].casefold() == "yes"
        try:
            if trap:
                found.traps.append((name, _warned(read(row))))
            else:
                found.cases.append(case(row))
        except Skipped as reason:
            if trap:
                found.traps.append((name, [f"refused: {reason}"]))
            else:
                found.skipped.append((name, str(reason)))
    return found


def case(row: Mapping[str, str]) -> Case:
    """A row with its plan and the figures of it that a plan can be held against.

    Raises:
        Skipped: with the reason.
    """
    decode, prefill = number(row, "decode_tps") or None, number(row, "prefill_tps") or None
    if decode is None and prefill is None:
        raise Skipped("nothing was measured")
    run = read(row)
    if not row["n_depth"]:
        prefill = None  # a prompt of unknown length
        if decode is None:
            raise Skipped("the length of the prompt is not stated")
    solution = solve(run)
    host = solution.assignment.host
    if host is not None and (host.dense.bytes or host.routed or host.cache) and not run.ram_stated:
        decode = None  # a host of unknown speed sets its pace; prompts are computed on the card
    if decode is None and prefill is None:
        raise Skipped("neither RAM speed nor CPU is stated")
    return Case(row["id"], run, solution, decode, prefill)


def solve(run: Run) -> Solution:
    """The plan's placement.

    Raises:
        Skipped: none exists within the row's constraints.
    """
    source = Source("row", (), (Candidate(run.engine.name, "the row's", run.device),))
    with _traits(run.engine):
        try:
            check(run.request, run.machine, run.spec)
            best, nearest = search(run.spec, run.machine, run.request, source)
        except PlanError as error:
            raise Skipped(error.message) from error
    if best is None:
        raise Skipped(f"does not fit: {_lacking(nearest)}")
    return best


@contextmanager
def _traits(engine: Engine) -> Iterator[None]:
    """While this lasts, the engine of that name has the row's traits."""
    before = ENGINES[engine.name]
    ENGINES[engine.name] = engine
    try:
        yield
    finally:
        ENGINES[engine.name] = before


def _lacking(nearest: Solution | None) -> str:
    missing = nearest.assignment.missing if nearest else {}
    return ", ".join(f"{tier} lacks {size / 1e9:.1f} GB" for tier, size in missing.items())


def _warned(run: Run) -> list[str]:
    found = solve(run)
    return list(warnings(found, run.spec, run.machine, estimate(found)))


def summary(
    cases: Sequence[Case], found: Errors, apart: Errors | None
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """By class and speed, the ``classes`` of --json."""
    kinds = {case.id: case.run.kind for case in cases}

    def mine(errors: Errors | None, kind: str, speed: str) -> list[float]:
        values: Mapping[str, float] = getattr(errors, speed) if errors else {}
        return [error for id, error in values.items() if kinds[id] == kind]

    return {
        kind: {
            speed: _statistics(mine(found, kind, speed), mine(apart, kind, speed))
            for speed in SPEEDS
        }
        for kind in CLASSES
    }


def _statistics(found: Sequence[float], apart: Sequence[float]) -> dict[str, float | int | None]:
    size = sorted(abs(error) for error in found)
    return {
        "count": len(found),
        "median_abs_error": round(statistics.median(size), 4) if size else None,
        "p80_abs_error": _percentile(size, 0.8),
        "p90_abs_error": _percentile(size, 0.9),
        "bias": round(statistics.fmean(found), 4) if found else None,
        "left_out_median_abs_error": (
            round(statistics.median(abs(error) for error in apart), 4) if apart else None
        ),
    }


def _percentile(size: Sequence[float], share: float) -> float | None:
    """The least error that ``share`` of the rows stay within."""
    return round(size[math.ceil(share * len(size)) - 1], 4) if size else None


def compared(cases: Sequence[Case]) -> list[Point]:
    """Every figure beside its prediction."""
    found = []
    for each in cases:
        predicted = dict(zip(SPEEDS, each.predicted(FITTED), strict=True))
        measured = dict(zip(SPEEDS, (each.decode, each.prefill), strict=True))
        found += [
            Point(each.id, each.run.kind, speed, real, predicted[speed])
            for speed, real in measured.items()
            if real
        ]
    return found


def document(table: Table, apart: Errors | None) -> dict[str, object]:
    """What --json prints; errors are fractions of what was measured."""
    return {
        "classes": summary(table.cases, errors(table.cases, FITTED), apart),
        "skipped": [{"id": id, "reason": reason} for id, reason in table.skipped],
        "traps": [{"id": id, "warnings": said} for id, said in table.traps],
        "rows": [
            asdict(point) | {"error": round(point.predicted / point.measured - 1, 4)}
            for point in compared(table.cases)
        ],
    }


def report(table: Table, apart: Errors | None) -> Iterator[str]:
    """The same as lines of text."""
    heads = ("class", "", "rows", "median", "p80", "p90", "bias", "left out")
    yield "{:<10} {:<8} {:>4} {:>8} {:>8} {:>8} {:>8} {:>9}".format(*heads)
    for kind, speeds in summary(table.cases, errors(table.cases, FITTED), apart).items():
        for speed, values in speeds.items():
            if values["count"]:
                yield f"{kind:<10} {speed:<8} {values['count']:>4} " + " ".join(
                    f"{'' if value is None else format(value, '.1%'):>{width}}"
                    for value, width in zip(list(values.values())[1:], (8, 8, 8, 8, 9), strict=True)
                )
    for point in compared(table.cases):
        yield (
            f"{point.id:<5} {point.kind:<10} {point.speed:<8} {point.measured:>9.2f} predicted "
            f"{point.predicted:>9.2f} ({point.predicted / point.measured - 1:+.0%})"
        )
    for id, reason in table.skipped:
        yield f"skipped {id}: {reason}"
    for id, said in table.traps:
        yield f"trap {id}: {'; '.join(said) or 'NO WARNING'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="the table of published runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fit", action="store_true", help="fit the constants and print them")
    parser.add_argument("--quick", action="store_true", help="no leave-one-source-out")
    parser.add_argument("--plot", type=Path, help="predicted against measured, as SVG")
    given = parser.parse_args()
    try:
        table = sorted_out(rows(given.runs))
    except UsageError as error:
        parser.error(error.message)
    if given.fit:
        print(json.dumps(asdict(fitted(table.cases, rounds=8)), indent=1))
        return
    apart = None
    if not given.quick:
        apart = left_out(table.cases, lambda name: print(name, file=sys.stderr))
    if given.plot:
        given.plot.write_text(plot(compared(table.cases)), encoding="utf-8")
    if given.json:
        print(json.dumps(document(table, apart), indent=1))
    else:
        print("\n".join(report(table, apart)))


if __name__ == "__main__":
    main()
