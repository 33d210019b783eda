"""Knows no runner's calls: one request's way from its prompt to its last event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localrun.engine.cache.timeline import Timeline
from localrun.engine.detokenize import Detokenizer
from localrun.engine.drafting.speculation import Speculation
from localrun.engine.generation import Generation
from localrun.engine.indent import IndentMatcher
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from localrun.engine.runner import BatchItem, Logits, LogitsWanted, Vocabulary
from localrun.engine.sampling.sampler import Sampler
from localrun.engine.stops import StopMatcher
from localrun.errors import LocalrunError

if TYPE_CHECKING:
    from localrun.engine.drafting.pace import RowCosts
    from localrun.engine.drafting.speculation import Drafting
    from localrun.engine.grammar.compiler import Matcher

Clock = Callable[[], float]
"""Seconds, monotonic."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence puts into a step: ``tokens``, the last ``drafts`` of them guesses.

    ``at_border``: afterwards the runner's state is worth a checkpoint.
    """

    sequence: Sequence
    tokens: list[int]
    drafts: int
    draws: bool
    at_border: bool = False

    @property
    def item(self) -> BatchItem:
        timeline = self.sequence.timeline
        assert timeline is not None
        wanted: LogitsWanted = "none"
        if self.draws:
            wanted = "all" if self.drafts else "last"
        return BatchItem(timeline.id, self.tokens, wanted)

    @property
    def rows(self) -> int:
        """Rows of logits that it asks for."""
        return 1 + self.drafts if self.draws else 0


class Sequence:
    """One timeline under way. ``cancelled`` is set from any thread; all else is the engine's.

    ``alone``: its next step takes nobody else along, as the last one failed for somebody.
    ``behind``: the one whose prompt begins alike and is being computed; ``shared``: how many tokens
    others' prompts, by their ids, begin with as this one does. ``began``: when its work began.
    ``overtaken``: how many that came later began while there was no room for this one.
    """

    def __init__(
        self,
        request: GenerationRequest,
        generation: Generation,
        vocabulary: Vocabulary,
        n_ctx: int,
        clock: Clock,
        matcher: Matcher | None = None,
    ) -> None:
        self.request = request
        self.generation = generation
        self.cancelled = False
        self.timeline: Timeline | None = None
        self.retries = 0
        self.alone = False
        self.behind: Sequence | None = None
        self.shared: dict[str, int] = {}
        self.overtaken = 0
        self.began: float | None = None
        self.tokens = list(request.prompt)
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._clock = clock
        most = n_ctx - len(request.prompt)
        self._limit = most if request.max_tokens is None else min(most, request.max_tokens)
        self._sampler = Sampler(request.sampling, request.prompt, vocabulary.tokens)
        self._detokenizer = Detokenizer()
        self._stops = StopMatcher(request.stop)
        self._indent = IndentMatcher(request.min_indent) if request.min_indent else None
        self._unsent: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._speculation: Speculation | None = None
        self._generated = self._cached = self._drafted = self._accepted = 0
        self._submitted = clock()
        self._first: float | None = None
        self._latest = 0.0
        self._has_line = False

    def begin(self, drafting: Drafting | None = None, costs: RowCosts | None = None) -> None:
        """Start the clock of the prefill. Not the first time where it had to give way before."""
        if self.began is not None:
            return
        self.began = self._clock()
        if drafting is not None and self.request.draft:
            self._speculation = Speculation(drafting.drafters(), costs, self._clock)

    def hold(self, timeline: Timeline) -> None:
        """Go on from what ``timeline`` holds of the tokens."""
        self.timeline = timeline
        self.behind = None
        self.shared.clear()
        self.overtaken = 0
        if self._generated == 0:
            self._cached = len(timeline.tokens)

    @property
    def missing(self) -> int:
        """How many tokens the runner does not hold yet; at least one."""
        held = 0 if self.timeline is None else len(self.timeline.tokens)
        return len(self.tokens) - held

    @property
    def decoding(self) -> bool:
        """Whether the next step appends one drawn token, and guesses."""
        return self._generated > 0 and self.missing == 1

    def chunk(self, limit: int, border: int | None = None) -> Work:
        """At most ``limit`` of the tokens the runner lacks: of the prompt, or drawn and lost."""
        missing = self.missing
        done = len(self.tokens) - missing
        tokens = self.tokens[done : done + limit]
        at_border = border == done + len(tokens)
        return Work(self, tokens, 0, draws=len(tokens) == missing, at_border=at_border)

    def next(self, most_drafts: int) -> Work:
        """The token drawn last, and guesses where they have paid so far."""
        last = self.tokens[-1:]
        most = min(most_drafts, self._limit - self._generated - 1)
        if self._speculation is None or most < 1:
            return Work(self, last, 0, draws=True)
        drafts = self._speculation.propose(self.tokens, most)
        return Work(self, last + drafts, len(drafts), draws=True)

    def prepare(self) -> None:
        """Before a forward that is followed by a draw: what the grammar allows takes its time."""
        if self._matcher is not None:
            self._matcher.prepare()

    def advance(self, work: Work, logits: Logits, row: int) -> tuple[FinishReason | None, int]:
        """The runner holds ``work``: draw from its rows, the first of which is ``row``.

        Returns why this was the end, if it was, and how many of the guesses were not drawn: the
        runner has to take them back.

        Raises:
            NotFiniteError: nothing can be drawn from these logits.
            EngineError: the grammar allows nothing.
        """
        assert self.timeline is not None
        certain = len(work.tokens) - work.drafts
        drafts = work.tokens[certain:]
        self.timeline.tokens.extend(work.tokens[:certain])
        self.retries, self.alone = 0, False
        if self._generated == 0:
            progress = min(len(self.timeline.tokens), len(self.request.prompt))
            self.generation.put(TokenEvent(self.request.id, prefilled=progress))
        if not work.draws:
            return self._late(), 0
        reason, accepted = self._draw(logits, row), 0
        while reason is None and accepted < len(drafts) and self.tokens[-1] == drafts[accepted]:
            self.timeline.tokens.append(drafts[accepted])
            accepted += 1
            reason = self._draw(logits, row + accepted)
        self._drafted += len(drafts)
        self._accepted += accepted
        return reason, len(drafts) - accepted

    def observe(self, work: Work, rejected: int, rows: int, seconds: float) -> None:
        """What a step of ``rows`` tokens cost, for the choice of guesses."""
        if self._speculation is not None:
            self._speculation.observe(work.drafts, work.drafts - rejected, rows, seconds)

    def _draw(self, logits: Logits, row: int) -> FinishReason | None:
        """Sample one token, send its text, and say whether it was the last."""
        allowed = None if self._matcher is None else self._matcher.mask()
        token = self._sampler.sample(logits, row, allowed)
        if self.request.sampling.logprobs is not None:
            self._logprobs.append(self._sampler.logprob(logits, row, token))
        self.tokens.append(token)
        self._latest = self._clock()
        if self._first is None:
            self._first = self._latest
        self._generated += 1
        self._unsent.append(token)
        if token in self._vocabulary.end and not self.request.ignore_end:
            return FinishReason.STOP
        if self._matcher is not None:
            self._matcher.accept(token)
        self._send(self._stops.push(self._detokenizer.push(self._bytes(token))))
        if self._stops.matched is not None:
            return FinishReason.STOP
        if self._matcher is not None and self._matcher.finished:
            return FinishReason.STOP
        if self._indent is not None and self._indent.matched:
            return FinishReason.LENGTH
        if self._generated >= self._limit or self._lasts_too_long():
            return FinishReason.LENGTH
        return None

    def _late(self) -> FinishReason | None:
        """Whether whoever asked waits no longer for a prompt that is still being read."""
        most = self.request.max_prefill_s
        if most is None or self._generated or self.began is None:
            return None
        return FinishReason.LENGTH if self._clock() - self.began >= most else None

    def _lasts_too_long(self) -> bool:
        most, first = self.request.max_decode_s, self._first
        if most is None or first is None or self._latest - first < most:
            return False
        return self._has_line

    def _bytes(self, token: int) -> bytes:
        name = self._vocabulary.names.get(token)
        if name is not None and any(name in mark for mark in self.request.marks):
            return name.encode()
        return self._vocabulary.tokens[token]

    def end(self, reason: FinishReason, error: LocalrunError | None = None) -> None:
        """Send what was held back, then the last event. Only the first call has an effect."""
        if self._speculation is not None:
            self._speculation.close()
        if self._matcher is not None:
            self._matcher.close()
        if self._stops.matched is None:
            self._send(self._stops.push(self._detokenizer.flush()) + self._stops.flush())
        if self._indent is not None:
            self._tell(self._indent.flush())
        if self._stops.matched is not None and reason is FinishReason.LENGTH:
            reason = FinishReason.STOP
        self.generation.put(
            TokenEvent(
                self.request.id,
                tokens=tuple(self._unsent),
                logprobs=tuple(self._logprobs),
                finish=reason,
                stopped=self._stops.matched,
                timings=self._timings(),
                error=error,
            )
        )

    def _send(self, text: str) -> None:
        self._tell(text if self._indent is None else self._indent.push(text))

    def _tell(self, text: str) -> None:
        if not text:
            return
        self._has_line = self._has_line or "\n" in text
        unsent, logprobs = tuple(self._unsent), tuple(self._logprobs)
        self.generation.put(TokenEvent(self.request.id, text, unsent, logprobs))
        self._unsent.clear()
        self._logprobs.clear()

    def _timings(self) -> Timings:
        now = self._clock()
        began = now if self.began is None else self.began
        first = now if self._first is None else self._first
        return Timings(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            prefill_s=first - began,
            decode_s=self._latest - first if self._generated else 0.0,
            queued_s=began - self._submitted,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )
