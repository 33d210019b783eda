"""Knows token ids; not where they come from: one model, one thread that owns it, a queue.

The thread started here makes every call to the runner, but for ``abort`` and ``tokenize``, which
runners allow from others, and closes it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from localrun.engine.generation import Generation
from localrun.engine.limits import MAX_WAITING, check
from localrun.engine.request import FinishReason, GenerationRequest
from localrun.engine.runner import ModelRunner, RunnerStats, Vocabulary
from localrun.engine.scheduler import Scheduler
from localrun.engine.sequence import Clock, Sequence
from localrun.engine.threads import ThreadRange, ThreadTuner
from localrun.errors import BusyError, EngineError

# How long an abort may have missed the forward it was meant for before it is repeated.
_ABORT_AGAIN_S = 0.05


class Engine:
    """Generates for one request after the other, in the order they came.

    ``threads`` None leaves the runner's thread count alone. Every method is safe to call from any
    thread. Every generation gets its last event, also when the engine is closed under it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        threads: ThreadRange | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Take the runner over.

        Raises:
            EngineError: the runner does not tell its vocabulary; it is closed.
        """
        self._runner = runner
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._closing = False
        self._error: str | None = None
        # Tokenizing must not race with the freeing of what it reads.
        self._tokenizing = threading.Lock()
        self._n_ctx = runner.capabilities.n_ctx
        tuner = None if threads is None else ThreadTuner(threads)
        self._scheduler = Scheduler(runner, tuner, clock)
        ready: Future[Vocabulary] = Future()
        # A daemon, so that a caller who forgot to close can still end; close() joins it.
        self._thread = threading.Thread(target=self._run, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        try:
            self._vocabulary = ready.result()
        except EngineError:
            self._thread.join()
            raise

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    def stats(self) -> RunnerStats:
        """The runner's counters when the last generation ended."""
        return self._scheduler.stats

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``. Does not wait for a generation.

        Raises:
            EngineError: the engine is closed.
        """
        with self._tokenizing:
            self._check_open()
            return self._runner.tokenize(text, add_special=add_special, parse_special=parse_special)

    def submit(
        self, request: GenerationRequest, *, on_ready: Callable[[], None] | None = None
    ) -> Generation:
        """Queue a request. ``on_ready``: see ``Generation``.

        Raises:
            RequestError: a field out of its range, named.
            ContextLengthError: the prompt leaves no room for one token.
            BusyError: too many requests wait.
            EngineError: the engine is closed.
        """
        check(request, n_ctx=self._n_ctx, vocabulary_size=len(self._vocabulary.tokens))
        generation = Generation(request, lambda: self._cancel(sequence), on_ready)
        sequence = Sequence(request, generation, self._vocabulary, self._n_ctx, self._clock)
        with self._changed:
            self._check_open()
            if len(self._waiting) >= MAX_WAITING:
                raise BusyError(f"{MAX_WAITING} requests are waiting already")
            self._waiting.append(sequence)
            self._changed.notify()
        return generation

    def close(self) -> None:
        """End every generation, close the runner, join the thread. A second call is nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive():
            self._scheduler.abort()
            self._thread.join(_ABORT_AGAIN_S)

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError(self._error or "the engine is closed", hint="load the model again")

    def _cancel(self, sequence: Sequence) -> None:
        with self._changed:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
                sequence.end(FinishReason.CANCELLED)
                return
        self._scheduler.interrupt(sequence)

    def _run(self, ready: Future[Vocabulary]) -> None:
        defect = True
        try:
            if self._start(ready):
                while self._admit():
                    self._scheduler.step()
            defect = False
        finally:
            # An error that no runner may raise shows on this thread, but no reader waits for it.
            self._end(ready, "the engine ended unexpectedly" if defect else None)

    def _start(self, ready: Future[Vocabulary]) -> bool:
        try:
            vocabulary = self._runner.vocabulary()
            self._scheduler.start()
        except EngineError as error:
            ready.set_exception(error)
            return False
        ready.set_result(vocabulary)
        return True

    def _admit(self) -> bool:
        """Wait for something to do and take it up; False when the engine closes."""
        with self._changed:
            while not (self._closing or self._waiting or self._scheduler.busy):
                self._changed.wait()
            if self._closing:
                return False
            while self._waiting and self._scheduler.has_room:
                self._scheduler.admit(self._waiting.popleft())
            return True

    def _end(self, ready: Future[Vocabulary], error: str | None) -> None:
        """The thread's last act: events first, so that no reader waits for a slow close."""
        reason = FinishReason.ERROR if error else FinishReason.CANCELLED
        with self._changed:
            self._closing, self._error = True, error
            waiting = list(self._waiting)
            self._waiting.clear()
        if error and not ready.done():
            ready.set_exception(EngineError(error))
        self._scheduler.end_all(reason, error)
        for sequence in waiting:
            sequence.end(reason, error)
        with self._tokenizing:
            self._runner.close()
