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
        self._tokens = list(request.prompt)
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
        """Whether the next step appends one drawn token and nothing else."""
        return self._generated > 0 and self._missing() == 1

    def pending(self, limit: int) -> list[int]:
        """The tokens to append next, at most ``limit``: a chunk of the prompt or the last token.

        Drawn tokens too, where the runner lost them.
        """
        end = len(self._tokens)
        done = end - self._missing()
        return self._tokens[done : min(end, done + limit)]

    def wants_logits(self, count: int) -> bool:
        """Whether the forward of ``count`` more tokens is followed by a draw."""
        return count == self._missing()

    def appended(self, tokens: list[int]) -> None:
        """The runner holds ``tokens`` now."""
        assert self.timeline is not None
        self.timeline.tokens.extend(tokens)
        self.retries = 0
        if self._generated == 0:
            progress = len(self.timeline.tokens)
            self.generation.put(TokenEvent(self.request.id, prefilled=progress))

    def draw(self, logits: Logits, row: int) -> FinishReason | None:
        """Sample one token, send its text, and say whether it was the last.

        Raises:
            NotFiniteError: nothing can be drawn from these logits.
        """
        token = self._sampler.sample(logits, row)
        self._tokens.append(token)
        self._latest = self._clock()
        if self._first is None:
            self._first = self._latest
        self._generated += 1
        self._unsent.append(token)
        if token in self._vocabulary.end and not self.request.ignore_end:
            return FinishReason.STOP
        self._send(self._stops.push(self._detokenizer.push(self._bytes(token))))
        if self._stops.matched is not None:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._generated >= self._limit else None

    def _bytes(self, token: int) -> bytes:
        name = self._vocabulary.names.get(token)
        if name is not None and any(name in mark for mark in self.request.marks):
            return name.encode()
        return self._vocabulary.tokens[token]

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

    def _missing(self) -> int:
        """How many tokens the runner does not hold yet; at least one."""
        assert self.timeline is not None
        return len(self._tokens) - len(self.timeline.tokens)

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
