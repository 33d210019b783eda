"""Knows no prompt: what ``run --stats`` says at the end, of the speed and of the plan behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from localrun.cli.comparison import compared, expert_lines, hits, lines, spent
from localrun.cli.plan_view import band, number

if TYPE_CHECKING:
    from localrun.chat.local import LocalChatModel
    from localrun.engine.request import Timings
    from localrun.engine.runner import RunnerStats
    from localrun.plan.plan import Plan


class Watched:
    """A model whose counters are looked at when its answer begins: what was spent before that, on
    the prompt, is not what a token of the answer takes."""

    def __init__(self, model: LocalChatModel) -> None:
        self._model = model
        self._begun: RunnerStats | None = None

    async def begins(self) -> None:
        """There is something of the answer."""
        if self._begun is None:
            self._begun = await self._model.stats()

    async def lines(self, plan: Plan, timings: Timings) -> list[str]:
        """Each a note."""
        found = list(speed(timings))
        told = plan.prediction.decode_tps
        if told.mid > 0:
            found.append(f"planned {number(told.mid)} tok/s ({band(told)})")
        # The first token is the prompt's.
        tokens = timings.generated_tokens - 1
        if self._begun is not None and tokens > 0:
            found += terms(plan, self._begun, await self._model.stats(), tokens, timings)
        return found


def speed(timings: Timings) -> Iterator[str]:
    yield (
        f"prompt {timings.prompt_tokens} tokens ({timings.cached_tokens} cached) "
        f"at {timings.prefill_tps:.1f} tok/s"
    )
    yield f"answer {timings.generated_tokens} tokens at {timings.decode_tps:.1f} tok/s"
    if timings.drafted_tokens:
        share = timings.accepted_tokens / timings.drafted_tokens
        yield f"guessed ahead {timings.drafted_tokens} tokens, {share:.0%} of them right"


def terms(
    plan: Plan, begun: RunnerStats, ended: RunnerStats, tokens: int, timings: Timings
) -> Iterator[str]:
    """What each token of the answer took, by the terms of its plan; nothing where the runner cannot
    tell them apart."""
    found = spent(begun, ended, tokens)
    # An answer may have ended before anybody could look.
    if not any(found.seconds.values()):
        return
    step = max(0.0, timings.decode_s / tokens - found.forward_s)
    yield "a token of the answer:"
    for line in lines(compared(plan.prediction, found, 1e3 * step)):
        yield f"  {line}"
    for line in expert_lines(hits(found), found.read_ahead, found.needed):
        yield f"  {line}"
