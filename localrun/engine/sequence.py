"""Knows no runner's calls: one request's way from its prompt to its last event."""

from __future__ import annotations

from collections.abc import Callable

from localrun.engine.detokenize import Detokenizer
from localrun.engine.generation import Generation
from localrun.engine.prefix import Timeline
from localrun.engine.request import FinishReason, GenerationRequest, Timings, TokenEvent
from localrun.engine.runner import Logits, Vocabulary
from localrun.engine.sampling import PENALTY_WINDOW, Sampler
from localrun.engine.stops import StopMatcher

Clock = Callable[[], float]
"""Seconds, monotonic."""


class Sequence:
    """One timeline under way. ``cancelled`` is set from any thread; all else is the engine's."""

    def __init__(
        self,
        request: GenerationRequest,
        generation: Generation,
        vocabulary: Vocabulary,
        n_ctx: int,
        clock: Clock,
    ) -> None:
        self.request = request
        self.generation = generation
        self.cancelled = False
        self.timeline: Timeline | None = None
        self.retries = 0
        self._vocabulary = vocabulary
        self._clock = clock
        most = n_ctx - len(request.prompt)
        self._limit = most if request.max_tokens is None else min(most, request.max_tokens)
        self._sampler = Sampler(request.sampling, request.prompt[-PENALTY_WINDOW:])
        self._detokenizer = Detokenizer()
        self._stops = StopMatcher(request.stop)
        self._next: int | None = None
        self._unsent: list[int] = []
        self._generated = 0
        self._cached = 0
        self._began: float | None = None
        self._first: float | None = None
        self._latest = 0.0

    def begin(self) -> None:
        """Start the clock of the prefill."""
        self._began = self._clock()

    def hold(self, timeline: Timeline) -> None:
        """Go on from what ``timeline`` holds of the prompt."""
        self.timeline = timeline
        self._cached = len(timeline.tokens)

    @property
    def decoding(self) -> bool:
        return self._next is not None

    def pending(self, limit: int) -> tuple[int, ...]:
        """The tokens to append next, at most ``limit``: a chunk of the prompt or the last token."""
        if self._next is not None:
            return (self._next,)
        assert self.timeline is not None
        done = len(self.timeline.tokens)
        return self.request.prompt[done : done + limit]

    def wants_logits(self, count: int) -> bool:
        """Whether the forward of ``count`` more tokens is followed by a draw."""
        assert self.timeline is not None
        return self.decoding or len(self.timeline.tokens) + count == len(self.request.prompt)

    def appended(self, tokens: tuple[int, ...]) -> None:
        """The runner holds ``tokens`` now."""
        assert self.timeline is not None
        self.timeline.tokens.extend(tokens)
        self.retries = 0
        if self._next is None:
            progress = len(self.timeline.tokens)
            self.generation.put(TokenEvent(self.request.id, prefilled=progress))

    def draw(self, logits: Logits, row: int) -> FinishReason | None:
        """Sample one token, send its text, and say whether it was the last.

        Raises:
            NotFiniteError: nothing can be drawn from these logits.
        """
        token = self._next = self._sampler.sample(logits, row)
        self._latest = self._clock()
        if self._first is None:
            self._first = self._latest
        self._generated += 1
        self._unsent.append(token)
        if token in self._vocabulary.end and not self.request.ignore_end:
            return FinishReason.STOP
        self._send(self._stops.push(self._detokenizer.push(self._vocabulary.tokens[token])))
        if self._stops.matched is not None:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._generated >= self._limit else None

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """Send what was held back, then the last event. Only the first call has an effect."""
        if self._stops.matched is None:
            self._send(self._stops.push(self._detokenizer.flush()) + self._stops.flush())
        if self._stops.matched is not None and reason is FinishReason.LENGTH:
            reason = FinishReason.STOP
        self.generation.put(
            TokenEvent(
                self.request.id,
                tokens=tuple(self._unsent),
                finish=reason,
                timings=self._timings(),
                error=error,
            )
        )

    def _send(self, text: str) -> None:
        if text:
            self.generation.put(TokenEvent(self.request.id, text, tuple(self._unsent)))
            self._unsent.clear()

    def _timings(self) -> Timings:
        now = self._clock()
        began = now if self._began is None else self._began
        first = now if self._first is None else self._first
        return Timings(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            prefill_s=first - began,
            decode_s=self._latest - first if self._generated else 0.0,
        )
