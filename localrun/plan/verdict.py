"""Knows no arithmetic: what a solution comes to, in one sentence."""

from __future__ import annotations

from localrun.plan import terms
from localrun.plan.plan import Prediction
from localrun.plan.search import Solution

_BOUND = {
    terms.DISK: "reads from disk set the pace",
    terms.SYNC: "handovers between GPU and CPU set the pace",
    terms.ENGRAM: "n-gram rows from disk set the pace",
    terms.STEP: "the loop around the model sets the pace",
    "between cards": "traffic between the cards sets the pace",
}


def verdict(found: Solution, prediction: Prediction) -> str:
    """One sentence with the speed, its band, and what binds it."""
    made, speed = found.assignment, prediction.decode_tps
    where = _where(found)
    if made.stack.spec.encoder:
        speed = prediction.prefill_tps
        return (
            f"Embeds texts of up to {made.choice.n_ctx} tokens {where}, about "
            f"{_number(speed.mid)} tokens a second ({_number(speed.low)} to {_number(speed.high)})."
        )
    bound = prediction.bound_by
    pace = _BOUND.get(bound, f"the bandwidth of {bound} sets the pace")
    runs = prediction.runs
    rests = f", as {runs} run{'s' if runs > 1 else ''} here showed" if runs else ""
    return (
        f"Runs {where} at about {_number(speed.mid)} tokens a second "
        f"({_number(speed.low)} to {_number(speed.high)}{rests}) "
        f"with {made.choice.n_ctx} tokens of context; {pace}."
    )


def _where(found: Solution) -> str:
    made = found.assignment
    if made.streams:
        return "with its experts streamed from disk"
    if found.rooms.unified:
        return "from unified memory"
    if not made.cards:
        return "on the CPU"
    host = made.host
    if host is not None and (host.layers or host.experts or host.cache):
        return "split over GPU and CPU" if host.layers else "with experts in RAM"
    busy = sum(not load.idle for load in made.cards)
    return f"over {busy} GPUs" if busy > 1 else "from GPU memory"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
