"""Knows no engine: what a plan predicted of a token, term by term, beside what a run measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from localrun.cli.output import size
from localrun.cli.plan_view import place
from localrun.plan.rooms import SIMULATED
from localrun.plan.terms import DENSE, DISK, EXPERTS, HIDDEN, KV, LAUNCHES, MISSES, STEP, term

if TYPE_CHECKING:
    from localrun.engine.runner import ExpertUse, RunnerStats
    from localrun.plan.plan import Budget, Plan, Prediction


@dataclass(frozen=True, slots=True)
class Spent:
    """What a token took of a runner, in the mean over ``tokens``: seconds in all and by term, bytes
    by term, picks of experts by the tier that had them, experts ``read_ahead`` and those of them
    that were ``needed``. The terms are empty where a runner cannot tell them apart."""

    tokens: int
    forward_s: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, float] = field(default_factory=dict)
    picks: Mapping[str, float] = field(default_factory=dict)
    read_ahead: float = 0.0
    needed: float = 0.0


def spent(before: RunnerStats, after: RunnerStats, tokens: int) -> Spent:
    """Of ``tokens`` that were decoded between two looks at the counters."""

    def each(old: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
        return {name: (count - old.get(name, 0)) / tokens for name, count in new.items()}

    return Spent(
        tokens,
        (after.forward_s - before.forward_s) / tokens,
        each(before.terms_s, after.terms_s),
        each(before.terms_bytes, after.terms_bytes),
        each(_picks(before.experts), _picks(after.experts)),
        (after.read_ahead - before.read_ahead) / tokens,
        (after.needed - before.needed) / tokens,
    )


def _picks(experts: Mapping[str, ExpertUse]) -> dict[str, float]:
    return {tier: use.picks for tier, use in experts.items()}


def middle(runs: Sequence[Spent]) -> Spent:
    """Of several runs each figure's middle one."""

    def each(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: median(table.get(name, 0.0) for table in tables) for name in names}

    return Spent(
        sum(run.tokens for run in runs),
        median(run.forward_s for run in runs),
        each([run.seconds for run in runs]),
        each([run.bytes for run in runs]),
        each([run.picks for run in runs]),
        median(run.read_ahead for run in runs),
        median(run.needed for run in runs),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One term of a token. None is what was not predicted, or cannot be measured."""

    term: str
    predicted_ms: float | None
    measured_ms: float | None
    predicted_bytes: int | None
    measured_bytes: int | None


def compared(prediction: Prediction, found: Spent, step_ms: float) -> list[Compared]:
    """Every term that was predicted or measured. ``step_ms`` is the loop around the forward."""
    measured = {name: 1e3 * seconds for name, seconds in found.seconds.items()} | {STEP: step_ms}
    time = _folded(prediction.terms_ms, measured)
    read = _folded(prediction.terms_bytes, measured)
    names = dict.fromkeys((*time, *read, *measured, *found.bytes))
    return [
        Compared(
            name,
            time.get(name),
            measured.get(name),
            _whole(read.get(name)),
            _whole(found.bytes.get(name)),
        )
        for name in names
    ]


COMPUTING: Final = "computing"
_COMPUTED: Final = frozenset((DENSE, EXPERTS, KV, LAUNCHES, MISSES))
# What a runner measures together is predicted apart: whoever waits for a disk sees only what was
# not hidden, and kernels are started, and rows looked at, within what they do. Which of a tier's
# terms its kernels were started in nobody predicts: ``computing`` has the sums to hold together.
_PARTS: Final = ((LAUNCHES, DENSE), (MISSES, DENSE), (KV, DENSE), (HIDDEN, DISK))


def _folded(predicted: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """``predicted`` with each term that is not measured joined to the one it is measured in."""
    found = dict(predicted)
    for part, whole in _PARTS:
        for name in [name for name in found if _is(name, part) and name not in measured]:
            into = name[: len(name) - len(part)] + whole
            if into in measured:
                found[into] = found.get(into, 0.0) + found.pop(name)
    return found


def _is(name: str, kind: str) -> bool:
    return name == kind or name.endswith(f" {kind}")


def computing(terms: Sequence[Compared]) -> list[Compared]:
    """By tier, all that is computed from it: its terms added up, those that nobody measured too.
    Of tiers that only one term is told of there is nothing to add."""
    by_tier: dict[str, list[Compared]] = {}
    for each in terms:
        tier, _, kind = each.term.partition(" ")
        if kind in _COMPUTED:
            by_tier.setdefault(tier, []).append(each)
    return [
        Compared(
            term(tier, COMPUTING),
            _sum(each.predicted_ms for each in parts),
            _sum(each.measured_ms for each in parts),
            _whole(_sum(each.predicted_bytes for each in parts)),
            _whole(_sum(each.measured_bytes for each in parts)),
        )
        for tier, parts in by_tier.items()
        if len(parts) > 1 and any(each.measured_ms is not None for each in parts)
    ]


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)


def lines(terms: Sequence[Compared]) -> Iterator[str]:
    """One line a term for a person, and one for what each tier computes in all."""
    terms = [*terms, *computing(terms)]
    width = max((len(each.term) for each in terms), default=0)
    for each in terms:
        parts = [_beside(each.measured_ms, each.predicted_ms, _ms)]
        if each.measured_bytes or each.predicted_bytes:
            parts.append(_beside(each.measured_bytes, each.predicted_bytes, _size))
        yield f"{each.term:<{width}}  {'; '.join(parts)}"


def _ms(time: float) -> str:
    return f"{time:.2f} ms"


def _size(count: float) -> str:
    return size(round(count))


def _beside(measured: float | None, predicted: float | None, said: Callable[[float], str]) -> str:
    if measured is None:
        return f"not measured, {said(predicted or 0.0)} predicted"
    beside = "nothing" if predicted is None else said(predicted)
    return f"{said(measured)}, {beside} predicted"


@dataclass(frozen=True, slots=True)
class Hits:
    """Picks of experts that a token found on one tier, and which share of all that is."""

    tier: str
    picks: float
    share: float


def hits(found: Spent) -> list[Hits]:
    """By tier, the fastest first; empty where nothing was picked, or nobody counts."""
    total = sum(found.picks.values())
    if not total:
        return []
    tiers = sorted(found.picks, key=place)
    return [Hits(tier, found.picks[tier], found.picks[tier] / total) for tier in tiers]


def expert_lines(tiers: Sequence[Hits], read_ahead: float, needed: float) -> Iterator[str]:
    """Where a token's experts were found, and how many were read ahead, for a person."""
    if tiers:
        shares = ", ".join(f"{each.share:.1%} in {each.tier}" for each in tiers)
        yield f"of {sum(each.picks for each in tiers):.1f} experts a token: {shares}"
    if read_ahead:
        share = needed / read_ahead
        yield f"read ahead {read_ahead:.1f} experts a token, {share:.0%} of them needed"


def held(plan: Plan, stats: RunnerStats) -> list[dict[str, Any]]:
    """By tier, in all and by what it is for; what nothing was planned or measured of is None."""
    planned = {each.tier: each for each in plan.budgets if each.tier != DISK and each.total}
    devices = {tier.tier: tier.device for tier in plan.machine.tiers}
    return [
        {
            "tier": tier,
            "simulated": devices.get(tier) == SIMULATED,
            **_held(planned.get(tier), stats.memory_bytes.get(tier), stats.memory_parts.get(tier)),
        }
        for tier in dict.fromkeys((*stats.memory_bytes, *planned))
    ]


def _held(
    budget: Budget | None, measured: int | None, parts: Mapping[str, int] | None
) -> dict[str, Any]:
    parts = parts or {}
    # Experts that are kept are weights to whoever holds them.
    weights = budget.weights + budget.expert_cache if budget else None
    compute = parts.get("compute", 0) + parts.get("output", 0) if parts else None
    return {
        # Scratch and contexts are in the budget, and in no buffer that the library names.
        "planned": budget.total - budget.overhead if budget else None,
        "measured": measured,
        "parts": {
            "weights": _part(weights, parts.get("weights")),
            "kv": _part(budget.kv if budget else None, parts.get("kv")),
            "compute": _part(budget.compute if budget else None, compute),
        },
    }


def _part(planned: int | None, measured: int | None) -> dict[str, int | None]:
    return {"planned": planned, "measured": measured}
