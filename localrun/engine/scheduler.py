"""Knows no threads but the one it runs on: runs what was admitted, step by step.

A step is what the composer put together, one forward of it, and the draws; here is also whose
failure, cancel or want of room ends or delays whom.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from localrun.engine.cache.common import common
from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.composer import Composer
from localrun.engine.costs import StepCosts
from localrun.engine.queue import rank
from localrun.engine.request import FinishReason
from localrun.engine.runner import ForwardAborted, Logits, ModelRunner, RunnerStats
from localrun.engine.sampling.sampler import NotFiniteError, NothingLeftError
from localrun.engine.sequence import Clock, Sequence, Work
from localrun.engine.threads import ThreadTuner
from localrun.errors import EngineError, LocalrunError, RequestError

if TYPE_CHECKING:
    from localrun.engine.drafting.speculation import Drafting

# An abort meant for a sequence that has just ended may hit the next one's forward.
_MAX_RETRIES: Final = 3
# A prompt that shares this much more with one being read than with the cache waits for it.
_WORTH_WAITING: Final = 32
# A cancelled sequence's forward is cut short where it has more tokens of the step than this.
_WORTH_ABORTING: Final = 32
_UNASKED: Final = "the runner ended a step that nobody asked it to end"

GiveWay = Callable[[Sequence], None]
"""Takes back a sequence that has to wait again."""


class Scheduler:
    """Runs admitted sequences step by step, all in one batch where the runner can.

    All is called on the thread that owns the runner, except ``interrupt`` and ``abort``.
    """

    def __init__(
        self,
        runner: ModelRunner,
        cache: PrefixCache,
        costs: StepCosts,
        tuner: ThreadTuner | None,
        drafting: Drafting | None,
        clock: Clock,
        give_way: GiveWay,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._tuner = tuner
        self._drafting = drafting
        self._clock = clock
        self._give_way = give_way
        self._limits = runner.capabilities
        self._costs = costs
        self._composer = Composer(self._limits, cache, self._costs)
        self._active: list[Sequence] = []
        self._threads: int | None = None
        self._rows = 0
        self._running = threading.Lock()
        self._in_forward: Many[Work] = ()
        self.stats = RunnerStats(memory_bytes={}, bytes_read={}, tokens=0)

    def start(self) -> None:
        """Raises EngineError where the runner tells nothing of itself."""
        self.stats = self._runner.stats()

    @property
    def active(self) -> Many[Sequence]:
        return self._active

    def ready(self, sequence: Sequence) -> bool:
        """Whether there is a seat and room for it, and nobody computes its prompt already."""
        if sequence.cancelled:
            return True
        if len(self._active) >= self._limits.max_sequences:
            return False
        if self._active and not self._has_cells(len(sequence.tokens)):
            return False
        return not self._is_behind(sequence)

    def admit(self, sequence: Sequence) -> None:
        self._active.append(sequence)
        sequence.begin(self._drafting if self._composer.drafts else None, self._costs.rows)

    def interrupt(self, sequence: Sequence) -> None:
        """From any thread: end ``sequence`` before its next step, and its running one soon.

        Other sequences of the step would lose it too, so it is cut short only where most of it is
        the cancelled ones': else it ends soon by itself.
        """
        with self._running:
            sequence.cancelled = True
            total = sum(len(work.tokens) for work in self._in_forward)
            gone = sum(len(work.tokens) for work in self._in_forward if work.sequence.cancelled)
            alone = gone == total > 0
            if alone or (gone > _WORTH_ABORTING and 2 * gone > total):
                self._runner.abort()

    def abort(self) -> None:
        """From any thread: end the running step soon, whosever it is."""
        with self._running:
            if self._in_forward:
                self._runner.abort()

    def step(self) -> None:
        """One forward, and the draws that follow it.

        What the runner or the draw raises ends the sequence it happened to. Where that cannot be
        told, each of the step goes on alone until it has made a step.
        """
        for sequence in [each for each in self._active if each.cancelled]:
            self._end(sequence, FinishReason.CANCELLED)
        self._take_timelines()
        works = self._room_for(self._composer.compose(self._active))
        if not works:
            return
        rows = chunk = drafts = 0
        for work in works:
            drafts += work.drafts
            if work.sequence.decoding:
                rows += len(work.tokens)
            else:
                chunk += len(work.tokens)
        threads = self._set_threads(rows, chunk, drafts)
        began = self._clock()
        try:
            logits = self._forward(works)
        except ForwardAborted:
            self._aborted(works)
            return
        except EngineError as error:
            self._failed(works, error)
            return
        self._draw(works, logits, began, rows, chunk)
        seconds = self._clock() - began
        self._costs.observe(rows, chunk, seconds)
        if self._tuner is not None and rows and not chunk and not drafts:
            self._tuner.observe(threads, seconds)

    def end_all(self, reason: FinishReason, error: LocalrunError | None = None) -> None:
        """Send every sequence's last event. Calls nothing of the runner's."""
        while self._active:
            self._active.pop().end(reason, error)

    def keep(self) -> None:
        """Before a regular end: what was under way may be gone on with later."""
        for sequence in self._active:
            if sequence.timeline is not None:
                self._cache.park(sequence.timeline)
                sequence.timeline = None

    # Who takes part.

    def _is_behind(self, sequence: Sequence) -> bool:
        """Whether one that is being read begins alike, and longer than what is cached."""
        if not self._limits.can_fork:
            return False
        other = sequence.behind
        if other is None:
            spared: int | None = None
            for each in self._active:
                if each.decoding or each.request.owner != sequence.request.owner:
                    continue
                # One that is less urgent may itself wait for long.
                if rank(each) > rank(sequence):
                    continue
                shared = sequence.shared.get(each.request.id)
                if shared is None:
                    shared = common(each.request.prompt, sequence.request.prompt)
                    sequence.shared[each.request.id] = shared
                if shared < _WORTH_WAITING:
                    continue
                if spared is None:
                    spared = self._cache.peek(sequence.request.prompt, sequence.request.owner)
                if shared >= spared + _WORTH_WAITING:
                    sequence.behind = other = each
                    break
        if other is None:
            return False
        held = 0 if other.timeline is None else len(other.timeline.tokens)
        if other in self._active and held < sequence.shared[other.request.id]:
            return True
        sequence.behind = None
        return False

    def _has_cells(self, tokens: int) -> bool:
        """Whether a sequence of so many would fit beside the running ones, with some to spare."""
        limits = self._limits
        if limits.n_cells >= limits.n_ctx * limits.max_sequences:
            return True
        spare = limits.n_cells // 16
        held = sum(len(each.tokens) for each in self._active)
        return held + tokens + spare <= limits.n_cells

    def _take_timelines(self) -> None:
        for sequence in list(self._active):
            if sequence.timeline is not None:
                continue
            try:
                timeline = self._cache.take(sequence.tokens, sequence.request.owner)
            except EngineError as error:
                self._fail(sequence, error)
                continue
            if timeline is None:
                self._postpone(sequence)
            else:
                sequence.hold(timeline)

    def _postpone(self, sequence: Sequence) -> None:
        if len(self._active) == 1:
            self._fail(sequence, EngineError("the runner has no sequence left"))
            return
        self._active.remove(sequence)
        self._give_way(sequence)

    def _room_for(self, works: list[Work]) -> list[Work]:
        """The works there are cells for; the last to come give way, and wait again."""
        while works and not self._cache.reserve(sum(len(work.tokens) for work in works)):
            victim = max(self._active, key=lambda each: (rank(each), each.began or 0.0))
            if len(self._active) == 1:
                self._fail(victim, EngineError("no room is left in the cache"))
                return []
            self._active.remove(victim)
            works = [work for work in works if work.sequence is not victim]
            if victim.timeline is not None:
                self._cache.park(victim.timeline)
                victim.timeline = None
            self._give_way(victim)
        return works

    # The step itself.

    def _forward(self, works: list[Work]) -> Logits:
        for work in works:
            if work.draws:
                work.sequence.prepare()
            if work.drafts:
                self._runner.checkpoint(work.item.sequence)
        with self._running:
            if all(work.sequence.cancelled for work in works):
                raise ForwardAborted
            self._in_forward = works
        try:
            return self._runner.forward([work.item for work in works])
        finally:
            with self._running:
                self._in_forward = ()

    def _draw(self, works: list[Work], logits: Logits, began: float, rows: int, chunk: int) -> None:
        row, computed = 0, self._clock()
        for work in works:
            sequence, decoded = work.sequence, work.sequence.decoding
            try:
                reason, rejected = sequence.advance(work, logits, row)
                if rejected:
                    self._runner.rollback(work.item.sequence, rejected)
                if work.draws and not chunk:
                    sequence.observe(work, rejected, rows, computed - began)
                if work.at_border and sequence.timeline is not None:
                    self._cache.checkpoint(sequence.timeline)
            except NotFiniteError:
                self._fail(sequence, EngineError("the model's logits are not finite"))
            except NothingLeftError as error:
                # What was asked contradicts itself: penalties, biases, and a grammar.
                self._fail(sequence, RequestError(str(error)))
            except LocalrunError as error:
                self._fail(sequence, error)
            else:
                if reason is not None:
                    self._end(sequence, reason)
                elif sequence.decoding and not decoded:
                    # What its prompt took, for whoever wants to know what its answer takes.
                    self._take_stats()
            row += work.rows

    def _set_threads(self, rows: int, chunk: int, drafts: int) -> int:
        if self._tuner is None:
            return 0
        tuner = self._tuner
        if rows and not chunk and rows - drafts != self._rows:
            # Steps of another size say nothing about those before.
            tuner.forget()
            self._rows = rows - drafts
        if chunk > rows:
            threads = tuner.prefill_threads
        else:
            # With guesses the size changes from step to step, back and forth: those are passed by.
            threads = tuner.usual_threads if drafts else tuner.decode_threads
        if threads != self._threads:
            self._runner.set_threads(threads)
            self._threads = threads
        return threads

    def _cut_back(self, works: list[Work]) -> None:
        """Nothing of the batch was appended; a state that cannot be cut back to before the batch
        is lost as a whole."""
        for work in works:
            sequence = work.sequence
            if sequence.timeline is None:
                continue
            try:
                self._cache.cut(sequence.timeline, len(sequence.timeline.tokens))
            except EngineError as error:
                self._fail(sequence, error)

    def _aborted(self, works: list[Work]) -> None:
        self._cut_back(works)
        if any(work.sequence.cancelled for work in works):
            # Somebody asked, and is gone before the next step: no fault of the others.
            return
        for work in works:
            work.sequence.retries += 1
            if work.sequence.retries > _MAX_RETRIES:
                self._fail(work.sequence, EngineError(_UNASKED))

    def _failed(self, works: list[Work], error: EngineError) -> None:
        if len(works) == 1:
            self._fail(works[0].sequence, error)
            return
        self._cut_back(works)
        for work in works:
            work.sequence.alone = True

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        self._active.remove(sequence)
        if sequence.timeline is not None:
            self._cache.park(sequence.timeline)
        self._take_stats()
        sequence.end(reason)

    def _fail(self, sequence: Sequence, error: LocalrunError) -> None:
        if sequence not in self._active:
            return
        self._active.remove(sequence)
        if sequence.timeline is not None:
            self._cache.drop(sequence.timeline)
        self._take_stats()
        sequence.end(FinishReason.ERROR, error)

    def _take_stats(self) -> None:
        # A runner that has just failed may fail here too; the last counters stand.
        with suppress(EngineError):
            self.stats = self._runner.stats()
