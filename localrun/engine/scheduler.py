"""Knows no threads but the one it runs on: which tokens go into the runner's next step."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

from localrun.engine.prefix import PrefixCache
from localrun.engine.request import FinishReason
from localrun.engine.runner import BatchItem, ForwardAborted, Logits, ModelRunner, RunnerStats
from localrun.engine.sampling import NotFiniteError
from localrun.engine.sequence import Clock, Sequence
from localrun.engine.threads import ThreadTuner
from localrun.errors import EngineError

# An abort meant for a sequence that has just ended may hit the next one's forward.
_MAX_RETRIES: Final = 3


class Scheduler:
    """Runs admitted sequences step by step; one at a time for now.

    All is called on the thread that owns the runner, except ``interrupt`` and ``abort``.
    """

    def __init__(self, runner: ModelRunner, tuner: ThreadTuner | None, clock: Clock) -> None:
        self._runner = runner
        self._tuner = tuner
        self._clock = clock
        self._cache = PrefixCache(runner)
        self._active: list[Sequence] = []
        self._max_batch = runner.capabilities.max_batch
        self._threads: int | None = None
        self._running = threading.Lock()
        self._in_forward: Sequence | None = None
        self.stats = RunnerStats(memory_bytes={}, bytes_read={}, tokens=0)

    def start(self) -> None:
        """Raises EngineError where the runner tells nothing of itself."""
        self.stats = self._runner.stats()

    @property
    def busy(self) -> bool:
        return bool(self._active)

    @property
    def has_room(self) -> bool:
        return not self._active

    def admit(self, sequence: Sequence) -> None:
        self._active.append(sequence)
        sequence.begin()

    def interrupt(self, sequence: Sequence) -> None:
        """From any thread: end ``sequence`` before its next step, and its running one soon."""
        with self._running:
            sequence.cancelled = True
            if self._in_forward is sequence:
                self._runner.abort()

    def abort(self) -> None:
        """From any thread: end the running step soon, whosever it is."""
        with self._running:
            if self._in_forward is not None:
                self._runner.abort()

    def step(self) -> None:
        """One forward of one sequence, and the draw that follows it.

        An EngineError of the runner's ends the sequence it happened to; its timeline is given
        back, since nobody knows what it holds.
        """
        sequence = self._active[0]
        if sequence.cancelled:
            self._end(sequence, FinishReason.CANCELLED)
            return
        try:
            reason = self._advance(sequence)
        except ForwardAborted:
            self._aborted(sequence)
        except NotFiniteError:
            self._fail(sequence, "the model's logits are not finite")
        except EngineError as error:
            self._fail(sequence, error.message)
        else:
            if reason is not None:
                self._end(sequence, reason)

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        """Send every sequence's last event. Calls nothing of the runner's."""
        while self._active:
            self._active.pop().end(reason, error)

    def _advance(self, sequence: Sequence) -> FinishReason | None:
        if sequence.timeline is None:
            sequence.hold(self._cache.take(sequence.request.prompt))
        assert sequence.timeline is not None
        tokens = sequence.pending(self._max_batch)
        wanted = sequence.wants_logits(len(tokens))
        item = BatchItem(sequence.timeline.id, tokens, "last" if wanted else "none")
        decoding = sequence.decoding
        threads = self._set_threads(decoding)
        began = self._clock()
        logits = self._forward(sequence, item)
        sequence.appended(tokens)
        reason = sequence.draw(logits, 0) if wanted else None
        if decoding and self._tuner is not None:
            self._tuner.observe(threads, self._clock() - began)
        return reason

    def _forward(self, sequence: Sequence, item: BatchItem) -> Logits:
        with self._running:
            if sequence.cancelled:
                raise ForwardAborted
            self._in_forward = sequence
        try:
            return self._runner.forward((item,))
        finally:
            with self._running:
                self._in_forward = None

    def _set_threads(self, decoding: bool) -> int:
        if self._tuner is None:
            return 0
        threads = self._tuner.decode_threads if decoding else self._tuner.prefill_threads
        if threads != self._threads:
            self._runner.set_threads(threads)
            self._threads = threads
        return threads

    def _aborted(self, sequence: Sequence) -> None:
        """Nothing of the batch was appended: end if that was meant, else run the step again."""
        sequence.retries += 1
        try:
            if sequence.timeline is not None:
                # A state that cannot be cut back to before the batch is lost as a whole.
                self._cache.cut(sequence.timeline, len(sequence.timeline.tokens))
        except EngineError as error:
            self._fail(sequence, error.message)
            return
        if not sequence.cancelled and sequence.retries > _MAX_RETRIES:
            self._fail(sequence, "the runner ended a step that nobody asked it to end")

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        self._active.remove(sequence)
        if sequence.timeline is not None:
            self._cache.park(sequence.timeline)
        self._take_stats()
        sequence.end(reason)

    def _fail(self, sequence: Sequence, error: str) -> None:
        self._active.remove(sequence)
        if sequence.timeline is not None:
            self._cache.drop(sequence.timeline)
        self._take_stats()
        sequence.end(FinishReason.ERROR, error)

    def _take_stats(self) -> None:
        # A runner that has just failed may fail here too; the last counters stand.
        with suppress(EngineError):
            self.stats = self._runner.stats()
