"""Knows no text: the solution's speeds with their bands."""

from __future__ import annotations

from localrun.plan import predict, terms
from localrun.plan.constants import BANDS, LEAST_BAND
from localrun.plan.hits import COLD_SKEW, STEADY_SKEW, TYPICAL_SKEW
from localrun.plan.learned import Residual
from localrun.plan.plan import Prediction, Range
from localrun.plan.search import Solution


def estimate(found: Solution) -> Prediction:
    """Predict decode, prefill and the time to the first token of the task's workload."""
    made, task = found.assignment, found.task
    flow = task.request.workload
    kind, learned = BANDS[workload_class(found)], task.learned
    slower, band = _learned(learned.decode, kind)
    prompts_slower, prompt_band = _learned(learned.prefill, kind)

    spent = task.token_terms(made)
    typical, cold, steady = (1e3 / (task.token_terms(made, skew).total * slower) for skew in _SKEWS)
    prompt = task.prompt_terms(made)
    prefilled = prompt.total * task.chunks(made) * prompts_slower
    prefill = 1e3 * max(1, flow.prompt) / prefilled
    prompt_parts = _parts(prompt, prompts_slower)
    if made.stack.spec.encoder:
        return Prediction(
            prefill_tps=_around(prefill, prompt_band),
            ttft_s=_around(prefilled / 1e3, prompt_band),
            bound_by=bound_by(prompt),
            prefill_terms_ms=prompt_parts,
            runs=learned.prefill.count if learned.prefill else 0,
        )
    first = (prefilled * bool(flow.prompt) + 1e3 / typical) / 1e3
    parts = _parts(spent, slower)
    if spent.hidden:
        parts[terms.HIDDEN] = -_told(spent.hidden * slower)
    return Prediction(
        decode_tps=Range(_low(cold, band), _told(typical), _high(steady, band)),
        prefill_tps=_around(prefill, prompt_band),
        ttft_s=_around(first, max(band, prompt_band)),
        cold=_around(cold, band),
        steady=_around(steady, band),
        bound_by=bound_by(spent),
        terms_ms=parts,
        prefill_terms_ms=prompt_parts,
        terms_bytes=predict.token_bytes(task.token(made)),
        runs=learned.decode.count if learned.decode else 0,
    )


def _learned(found: Residual | None, band: float) -> tuple[float, float]:
    """How many times slower runs were than predicted, and the band that is left around that: twice
    as far as they lay apart, and no wider than that of a plan nobody has run as long as that holds
    them all. One run says how far off a plan was, not how far runs lie apart: of each further one
    the band may become that much narrower."""
    if found is None:
        return 1.0, band
    least = max(LEAST_BAND, band / (1 + found.count))
    return found.ratio, max(least, found.spread, min(band, 2 * found.spread))


def _parts(spent: predict.Terms, slower: float) -> dict[str, float]:
    return {name: _told(time * slower) for name, time in spent.parts.items()}


_SKEWS = (TYPICAL_SKEW, COLD_SKEW, STEADY_SKEW)


def workload_class(found: Solution) -> str:
    """Which class of published runs a plan is like; its error is the plan's band."""
    made = found.assignment
    if made.stack.tables:
        return "engram"
    if made.streams:
        return "streaming"
    if found.rooms.unified:
        return "unified"
    if not made.cards:
        return "cpu"
    computed = made.host is not None and (made.host.layers or made.host.experts or made.host.cache)
    return "hybrid" if computed else "all-gpu"


def bound_by(spent: predict.Terms) -> str:
    """The tier or step that the most time of a token goes to."""
    totals: dict[str, float] = {}
    for name, time in spent.parts.items():
        tier = name.partition(" ")[0] if name.startswith(("vram", "ram", "unified")) else name
        totals[tier] = totals.get(tier, 0.0) + time
    return max(totals, key=lambda name: totals[name])


def _around(value: float, band: float) -> Range:
    return Range(_low(value, band), _told(value), _high(value, band))


def _low(value: float, band: float) -> float:
    return _told(value / (1 + band))


def _high(value: float, band: float) -> float:
    return _told(value * (1 + band))


def _told(value: float) -> float:
    """Five digits: more are not known, fewer would make nothing of a slow disk."""
    return float(f"{value:.5g}")
