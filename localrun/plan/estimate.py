"""Knows no text: the solution's speeds with their bands."""

from __future__ import annotations

from localrun.plan import predict, work
from localrun.plan.constants import BANDS
from localrun.plan.hits import COLD_SKEW, STEADY_SKEW, TYPICAL_SKEW
from localrun.plan.plan import Prediction, Range
from localrun.plan.search import Solution


def estimate(found: Solution) -> Prediction:
    """Predict decode, prefill and the time to the first token of the task's workload."""
    made, task = found.assignment, found.task
    flow = task.request.workload
    band = BANDS[workload_class(found)]

    def decode(skew: float) -> predict.Terms:
        token = work.token(made, skew)
        return predict.token_terms(token, task.rooms, task.engine, task.fit, task.request.threads)

    terms = decode(TYPICAL_SKEW)
    typical, cold, steady = (1e3 / decode(skew).total for skew in _SKEWS)
    prompt = task.prompt_terms(made)
    prefilled = prompt.total * task.chunks(made)
    prefill = 1e3 * max(1, flow.prompt) / prefilled
    if made.stack.spec.encoder:
        return _embedding(prompt, prefill, prefilled / 1e3, band)
    first = (prefilled * bool(flow.prompt) + terms.total) / 1e3
    parts = {name: _told(time) for name, time in terms.parts.items()}
    if terms.hidden:
        parts["hidden behind computing"] = -_told(terms.hidden)
    return Prediction(
        decode_tps=Range(_low(cold, band), _told(typical), _high(steady, band)),
        prefill_tps=_around(prefill, band),
        ttft_s=_around(first, band),
        cold=_around(cold, band),
        steady=_around(steady, band),
        bound_by=bound_by(terms),
        terms_ms=parts,
        prefill_terms_ms={name: _told(time) for name, time in prompt.parts.items()},
    )


def _embedding(text: predict.Terms, tps: float, seconds: float, band: float) -> Prediction:
    """Of an encoder: what embedding a text takes."""
    return Prediction(
        prefill_tps=_around(tps, band),
        ttft_s=_around(seconds, band),
        bound_by=bound_by(text),
        prefill_terms_ms={name: _told(time) for name, time in text.parts.items()},
    )


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


def bound_by(terms: predict.Terms) -> str:
    """The tier or step that the most time of a token goes to."""
    totals: dict[str, float] = {}
    for name, time in terms.parts.items():
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
